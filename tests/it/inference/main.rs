//! Prediction, ensembles, evaluation, postprocessing, the server, and models of nnU-Net.

#[allow(dead_code)]
#[path = "../../../examples/serve_client.rs"]
mod client;
#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/http.rs"]
mod http;
#[path = "../../common/network.rs"]
mod network;
#[path = "../../common/plans.rs"]
mod plans;
#[path = "../../common/skip.rs"]
mod skip;
#[path = "../../common/tiny_model.rs"]
mod tiny_model;
#[path = "../../common/work.rs"]
mod work;

mod best_configuration;
mod ensemble;
mod evaluate;
mod infer_reference;
mod metrics_reference;
mod nifti_matrix;
mod nnunet_models;
mod postprocess;
mod predict;
mod predict_cases;
mod right_results;
mod serve;
