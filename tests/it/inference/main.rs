//! Prediction, ensembles, evaluation, postprocessing, the server, and models of nnU-Net.

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/http.rs"]
mod http;
#[path = "../../common/network.rs"]
mod network;
#[path = "../../common/plans.rs"]
mod plans;
#[path = "../../common/tiny_model.rs"]
mod tiny_model;
#[path = "../../common/work.rs"]
mod work;

mod best_configuration;
mod ensemble;
mod evaluate;
mod infer_reference;
mod metrics_reference;
mod nnunet_models;
mod postprocess;
mod predict;
mod predict_cases;
mod serve;
