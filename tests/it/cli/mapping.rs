//! `docs/reference/coming-from-nnunet.md` lists every command and flag of nnU-Net v2 and NVIDIA's nnU-Net.

use std::collections::BTreeSet;

/// Entry points of nnU-Net v2.8.1.
const COMMANDS: &str = "accumulate_crossval_results apply_postprocessing convert_MSD_dataset convert_old_nnUNet_dataset \
    determine_postprocessing download_pretrained_model_by_url ensemble evaluate_folder evaluate_simple \
    export_model_to_zip extract_fingerprint find_best_configuration install_pretrained_model_from_zip \
    move_plans_between_datasets plan_and_preprocess plan_experiment plot_overlay_pngs predict \
    predict_from_modelfolder preprocess train";

/// Flags of these commands (their `argparse` parsers), without the ones with the same meaning everywhere (`-i`, `-o`,
/// `-h`).
const FLAGS: &str = "-channel_idx -chk -c -d -device -djfile -dataset_json -f -fpe -gpu_memory_target -il -l -m -np -npfp -npp \
    -nps -num_gpus -num_parts -overlay_intensity -overwrite_id -overwrite_plans_name -overwrite_target_spacing -p -part_id \
    -pfile -pl -plans_json -plans_name -pp_pkl_file -preprocessor_name -pretrained_weights -prev_stage_predictions -ref -s -sp \
    -step_size -t -tp -tr --c --chill --clean --continue_prediction --disable_checkpointing --disable_ensembling \
    --disable_progress_bar --disable_tta --exp_cv_preds --no_overwrite --no_pbar --no_pp --not_on_device --not_strict --npz \
    --remove_postprocessed --save_npz --save_probabilities --use_raw --val --val_best --verbose --verify_dataset_integrity";

/// Flags of NVIDIA's nnU-Net for TensorFlow 2 (`runtime/args.py`, `preprocess.py`), and the additional ones of its
/// PyTorch edition.
const NVIDIA: &str = "--affinity --amp --batch-size --bench-steps --benchmark --blend --brats --ckpt-dir --ckpt-strategy \
    --ckpt_path --ckpt_store_dir --cosine-annealing-first-cycle-steps --cosine-annealing-peak-decay --data \
    --deep-supervision --deep_supr_num --depth --dim --end-learning-rate --epochs --exec-mode --filters --focal --fold --gpus \
    --gradient_clip_val --invert_resampled_y --learning-rate --load_sm --logname --lookahead --loss-batch-reduction \
    --loss-include-background --min_fmap --momentum --more_chn --n_jobs --negative-slope --nfolds --norm --num-workers --nvol \
    --optimizer --overlap --oversampling --patience --profile --quiet --res_block --results --resume-training --save-preds \
    --save_ckpt --saved-model-dir --scheduler --seed --skip-eval --steps-per-epoch --sync_batchnorm --task --test_batches \
    --train_batches --tta --use-dllogger --val_batch_size --validate --warmup-steps --weight-decay --xla";

#[test]
fn the_page_names_all_that_users_of_the_other_programs_know() {
    let page = include_str!("../../../docs/reference/coming-from-nnunet.md");
    let table: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).collect();
    // The first column of each row is for nnU-Net, the second for NVIDIA.
    let words = |column: usize| -> BTreeSet<&str> {
        let cells = table.iter().filter_map(|row| row.split(" | ").nth(column));
        cells.flat_map(|cell| cell.split(|letter: char| letter.is_whitespace() || "`,|\\".contains(letter))).collect()
    };
    let (nnunet, nvidia) = (words(0), words(1));
    let missing_commands =
        COMMANDS.split_whitespace().filter(|name| !nnunet.contains(format!("nnUNetv2_{name}").as_str()));
    let missing_flags = FLAGS.split_whitespace().filter(|flag| !nnunet.contains(flag));
    let missing_nvidia = NVIDIA.split_whitespace().filter(|flag| !nvidia.contains(flag));
    let missing: Vec<&str> = missing_commands.chain(missing_flags).chain(missing_nvidia).collect();
    assert!(missing.is_empty(), "docs/reference/coming-from-nnunet.md lacks {missing:?}");
}
