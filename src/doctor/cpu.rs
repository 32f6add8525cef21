//! Checks of the processor and of oneDNN.

use nnunet_nn::ops::Precision;
use nnunet_nn::ops::cpu::onednn;

use super::Finding;

/// Relevant vector extensions: flag in `/proc/cpuinfo` and display name.
const EXTENSIONS: [(&str, &str); 6] = [
    ("avx2", "AVX2"),
    ("avx512f", "AVX-512"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_tile", "AMX"),
    ("asimd", "NEON"),
    ("sve", "SVE"),
];

/// Model, vector extensions, and cores available to this process under affinity and cgroup limits.
pub(super) fn processor() -> Finding {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = match std::thread::available_parallelism() {
        Ok(usable) => format!("{usable} of {} cores usable", online(&cpuinfo).max(usable.get())),
        Err(error) => format!("number of usable cores unknown: {error}"),
    };
    Finding::found("CPU", format!("{}; {cores}", describe(&cpuinfo)))
}

/// The library that computes convolutions on the CPU.
pub(super) fn onednn() -> Finding {
    match onednn::library() {
        Some(library) => {
            let (major, minor, patch) = library.version();
            let formats = match onednn::has_kernels(Precision::AmpBf16) {
                true => "f32 and bf16",
                false => "f32; no bf16 kernels for this processor, --precision amp-bf16 would be slow",
            };
            Finding::found("oneDNN", format!("{major}.{minor}.{patch}, {formats}"))
        }
        None if onednn::is_disabled() => {
            let effect = "disabled by NNUNET_DIST_ONEDNN=0; convolutions on the CPU are several times slower";
            Finding::optional("oneDNN", effect, "unset NNUNET_DIST_ONEDNN")
        }
        None => {
            let effect = "convolutions on the CPU are several times slower";
            Finding::optional("oneDNN", effect, "sudo apt-get install libdnnl2")
        }
    }
}

/// Model and vector extensions from the text of `/proc/cpuinfo`.
fn describe(cpuinfo: &str) -> String {
    let flags = value(cpuinfo, "flags").or_else(|| value(cpuinfo, "Features")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let model = value(cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
    let extensions = EXTENSIONS.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name);
    std::iter::once(model).chain(extensions).collect::<Vec<_>>().join(", ")
}

fn online(cpuinfo: &str) -> usize {
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count()
}

/// Value of a key for the first processor.
fn value<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == key).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "\
processor\t: 0
model name\t: Example 9000
flags\t\t: fpu avx avx2 avx512f amx_tile

processor\t: 1
model name\t: Example 9000
flags\t\t: fpu avx avx2 avx512f amx_tile
";

    #[test]
    fn model_and_extensions_are_read_from_cpuinfo() {
        assert_eq!(describe(CPUINFO), "Example 9000, AVX2, AVX-512, AMX");
        assert_eq!(online(CPUINFO), 2);
        assert_eq!(describe("Features : fp asimd sve"), format!("{}, NEON, SVE", std::env::consts::ARCH));
    }
}
