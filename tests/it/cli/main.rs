//! The command line, the book, packaging and dependencies.

#[path = "../../common/generated.rs"]
mod generated;
#[path = "../../common/job.rs"]
mod job;
#[path = "../../common/book.rs"]
mod pages;
#[path = "../../common/plans.rs"]
mod plans;
#[path = "../../common/dicom.rs"]
mod series;
#[path = "../../common/skip.rs"]
mod skip;

mod architecture;
mod bench;
mod book;
mod book_commands;
mod cli;
mod cli_reference;
mod defaults;
mod deploy;
mod doctor;
mod examples;
mod inspect;
mod man;
mod mapping;
mod slips;
mod snapshots;
mod supply_chain;
