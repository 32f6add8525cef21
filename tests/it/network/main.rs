//! Plans, networks, operations, losses and optimizers.

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/network.rs"]
mod network;
#[path = "../../common/operations.rs"]
mod operation_checks;
#[path = "../../common/reference_network.rs"]
mod reference_network;
#[path = "../../common/skip.rs"]
mod skip;

mod loss_reference;
mod network_reference;
mod operations;
mod optimizer_reference;
mod planner_reference;
mod schedule_reference;
