//! The tests that can share a process, as one program: a test program is compiled and linked with all of the library, which takes longer
//! than most of these tests. `cargo test -p tests --test library plans` runs one file of them.

mod agreement;
mod cpu_matmuls;
mod finetune;
mod golden_heads;
mod golden_knn;
mod golden_loss_optim;
mod golden_model;
mod golden_ops;
mod golden_resnet;
mod gpu_training;
mod gradients;
mod heads;
mod learning;
mod objectives;
mod op_agreement;
mod plans;
mod resnet;
mod splits;
