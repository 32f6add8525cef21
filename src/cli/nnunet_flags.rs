//! nnU-Net's flags that this program writes differently, answered with the right form.

use std::ffi::OsString;

use clap::CommandFactory;

use super::Cli;

/// The right form of a flag, in which `VALUE` stands for the given value.
const FLAGS: [(&str, &str); 22] = [
    ("-step_size", "--step-size VALUE"),
    ("-num_parts", "--num_parts VALUE"),
    ("-part_id", "--part_id VALUE"),
    ("-prev_stage_predictions", "--prev-stage-predictions VALUE"),
    ("-pretrained_weights", "--pretrained-weights VALUE"),
    ("-num_gpus", "mpirun -np VALUE nnunet-dist train, or nnunet-launch -np VALUE -- train"),
    ("-plans_name", "-p VALUE"),
    ("-pl", "--planner, one of default, resenc-m, resenc-l and resenc-xl"),
    ("-gpu_memory_target", "--gpu-memory VALUE"),
    ("-overwrite_target_spacing", "--overwrite-target-spacing Z,Y,X"),
    ("-overwrite_plans_name", "--plans-name VALUE"),
    ("-djfile", "--dataset-json VALUE"),
    ("-pfile", "nothing: the plans are not needed"),
    ("-tr", "a --config file with the settings of the trainer"),
    ("-np", "-j VALUE with preprocess, nothing elsewhere: all cores are used"),
    ("-npp", "nothing: all cores are used"),
    ("-nps", "nothing: all cores are used"),
    ("-npfp", "nothing: all cores are used"),
    ("-m", "-r VALUE"),
    ("--c", "--resume"),
    ("--val_best", "--val-best"),
    ("--disable_progress_bar", "-q"),
];

/// Explains nnU-Net's flags on the command line that this program does not have; `None` if there are none.
///
/// Without this, `-chk` would be read as `-c hk`. Arguments after `--` are not looked at.
pub(super) fn explain(arguments: &[OsString]) -> Option<String> {
    let words: Vec<&str> = arguments.iter().skip(1).map_while(|argument| argument.to_str()).collect();
    let words: Vec<&str> = words.into_iter().take_while(|word| *word != "--").collect();
    let at = words.iter().position(|word| !word.starts_with('-'))?;
    let name = words[at];
    let program = Cli::command();
    let command = program.find_subcommand(name)?;
    if command.has_subcommands() {
        return None;
    }
    let rest = &words[at + 1..];
    if name == "train"
        && let [dataset, configuration, fold, ..] = rest
        && [dataset, configuration, fold].iter().all(|word| !word.starts_with('-'))
    {
        return Some(format!(
            "{dataset} {configuration} {fold} is nnU-Net's form; write nnunet-dist train -w WORK -c {configuration} -f {fold}"
        ));
    }
    let has_short = |short: char| command.get_arguments().any(|argument| argument.get_short() == Some(short));
    let has_long = |long: &str| {
        command.get_arguments().any(|argument| {
            argument.get_long() == Some(long) || argument.get_all_aliases().is_some_and(|all| all.contains(&long))
        })
    };
    let found = rest.iter().enumerate().filter_map(|(index, word)| {
        let (flag, value) = match word.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (*word, rest.get(index + 1).copied().filter(|next| !next.starts_with('-'))),
        };
        let right = match flag {
            "-chk" => format!("--checkpoint {}", checkpoint(value)),
            "-device" => format!(
                "--device {}",
                if value.is_some_and(|value| value.starts_with("cuda")) { "cuda" } else { "cpu" }
            ),
            "-d" if !has_short('d') => {
                let value = value.unwrap_or("DATASET");
                return Some(format!(
                    "-d {value} is nnU-Net's dataset; `{name}` works in the folder that `plan` creates: -w WORK"
                ));
            }
            "-m" if has_short('m') => return None,
            _ if flag.strip_prefix("--").is_some_and(has_long) => return None,
            _ => {
                let (_, right) = FLAGS.iter().find(|(known, _)| *known == flag)?;
                right.replace("VALUE", value.unwrap_or("VALUE"))
            }
        };
        Some(format!("{flag} is nnU-Net's flag; write {right}"))
    });
    let found: Vec<String> = found.collect();
    (!found.is_empty()).then(|| found.join("; "))
}

/// Name of a checkpoint here: `checkpoint_best.pth` is `best`, the others are the latest.
fn checkpoint(file: Option<&str>) -> &'static str {
    if file.is_some_and(|file| file.contains("best")) { "best" } else { "latest" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        explain(&arguments).unwrap_or_default()
    }

    #[test]
    fn nnunets_flags_are_answered_with_the_right_form() {
        for (line, right) in [
            ("nnunet-dist predict -w w -chk checkpoint_best.pth", "write --checkpoint best"),
            ("nnunet-dist predict -chk checkpoint_final.pth -w w", "write --checkpoint latest"),
            ("nnunet-dist -v train -device cuda:0", "write --device cuda"),
            ("nnunet-dist predict -i in -o out -d 4 -c 2d", "-d 4 is nnU-Net's dataset; `predict` works"),
            ("nnunet-dist train 4 3d_fullres 0", "write nnunet-dist train -w WORK -c 3d_fullres -f 0"),
            ("nnunet-dist train -num_gpus 8", "mpirun -np 8"),
            ("nnunet-dist predict -step_size=0.5", "--step-size 0.5"),
            ("nnunet-dist train -w w -c 2d -f 0 --c", "write --resume"),
            ("nnunet-dist plan -d x -w w -gpu_memory_target 24", "write --gpu-memory 24"),
            (
                "nnunet-dist predict -i in -o out -d 4 -chk checkpoint_best.pth -device cuda",
                "-w WORK; -chk is nnU-Net's flag; write --checkpoint best; -device is nnU-Net's flag; write --device cuda",
            ),
            ("nnunet-dist evaluate -djfile a.json", "write --dataset-json a.json"),
        ] {
            assert!(explained(line).contains(right), "{line}: {}", explained(line));
        }
    }

    #[test]
    fn own_flags_and_other_words_stay() {
        for line in [
            "nnunet-dist plan -d 4 -w w",
            "nnunet-dist predict -w w -c 2d -f 0 1 -i in -o out --step-size 0.5 --disable_tta --num_parts 2 --part_id 0",
            "nnunet-dist train -w w -c 2d -f 0 --device cuda",
            "nnunet-dist nothing -chk x",
            "nnunet-dist train -- -chk x",
            "nnunet-dist",
        ] {
            assert_eq!(explained(line), "", "{line}");
        }
    }
}
