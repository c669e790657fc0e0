//! What people type who come from other programs: underscores for dashes, and other names of flags. Some are taken for ours, where they
//! mean the same; of others the hint names what would do.

use std::ffi::OsString;

/// Other names of flags that mean the same.
const SAME: [(&str, &str); 14] = [
    ("batch-size", "batch"),
    ("learning-rate", "lr"),
    ("num-epochs", "epochs"),
    ("data-path", "data"),
    ("data-dir", "data"),
    ("output-dir", "out"),
    ("output", "out"),
    ("saveckp-freq", "save-every"),
    ("pretrained-weights", "checkpoint"),
    ("weights", "checkpoint"),
    ("num-prototypes", "out-dim"),
    ("model", "arch"),
    ("nb-knn", "k"),
    ("random-seed", "seed"),
];

/// Other names of flags that there is no equal for, and what would do.
const OTHER: [(&str, &str); 14] = [
    ("batch-size-per-gpu", "--batch is the number of images of a step, of all processes and cards together"),
    ("num-workers", "--threads: the same threads load images and compute"),
    ("workers", "--threads: the same threads load images and compute"),
    ("use-fp16", "leave it out: the CPU computes in f32, a GPU in bf16 unless --precision says otherwise"),
    ("fp16", "leave it out: the CPU computes in f32, a GPU in bf16 unless --precision says otherwise"),
    ("dist-url", "leave it out: processes that mpirun, srun or torchrun start find each other"),
    ("local-rank", "leave it out: processes that mpirun, srun or torchrun start find each other"),
    ("checkpoint-key", "--which teacher or student, or --network PREFIX"),
    ("momentum", "--momentum-teacher is the teacher's, --sgd-momentum the optimizer's"),
    ("temperature-teacher", "--teacher-temp"),
    ("warmup-steps", "--warmup-epochs"),
    ("image-size", "--global-size is the side of the global crops, --size that of an evaluation where it has one"),
    ("img-size", "--global-size is the side of the global crops, --size that of an evaluation where it has one"),
    ("gpu", "dino-gpu is the program for NVIDIA GPUs"),
];

/// The arguments with the names of flags as ours are; values, and what follows a bare `--`, stay as they are.
pub fn ours(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut flags = true;
    let one = |argument: OsString| {
        let Some(rest) = argument.to_str().filter(|_| flags).and_then(|text| text.strip_prefix("--")) else {
            return argument;
        };
        if rest.is_empty() {
            flags = false;
            return argument;
        }
        let (name, value) = rest.split_once('=').map_or((rest, None), |(name, value)| (name, Some(value)));
        let dashed = name.replace('_', "-");
        let same = SAME.iter().find(|(other, _)| *other == dashed).map(|(_, own)| own.to_string());
        let name = same.unwrap_or(dashed);
        match value {
            Some(value) => format!("--{name}={value}").into(),
            None => format!("--{name}").into(),
        }
    };
    arguments.map(one).collect()
}

/// What would do in the place of a flag of other programs.
pub fn instead(flag: &str) -> Option<&'static str> {
    let name = flag.trim_start_matches('-').split('=').next()?;
    OTHER.iter().find(|(other, _)| *other == name).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ours_and_values_stay() {
        let of = |line: &str| {
            let all = ours(line.split(' ').map(OsString::from));
            all.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("x train --batch_size 8 --local_crops_number=0"), "x train --batch 8 --local-crops-number=0");
        assert_eq!(of("x --data_path my_images --output_dir=a_b"), "x --data my_images --out=a_b");
        assert_eq!(of("x --learning-rate 1e-3 -- --batch_size my_file"), "x --lr 1e-3 -- --batch_size my_file");
        assert_eq!(of("x --image my_image.png --_"), "x --image my_image.png ---");
        assert!(instead("--num-workers").unwrap().contains("--threads") && instead("--lr").is_none());
    }
}
