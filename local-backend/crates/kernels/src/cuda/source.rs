//! The kernels' source, in the binary: one module for each file, compiled after a common prelude.

/// A file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// The file's name, as compilers' messages have it.
    pub file: &'static str,
    text: &'static str,
    /// What it defines.
    pub kernels: &'static [&'static str],
}

const PRELUDE: &str = include_str!("../../cuda/prelude.cuh");
const SHIM: &str = include_str!("../../cuda/simt.h");
const HOPPER_PRELUDE: &str = include_str!("../../cuda/hopper/prelude.cuh");
const HOPPER_SHIM: &str = include_str!("../../cuda/hopper/simt.h");
const SHIM_LAUNCH: &str = include_str!("../../cuda/simt_launch.h");

macro_rules! module {
    ($file:literal, $($kernel:literal)*) => {
        Module {
            file: $file,
            text: include_str!(concat!("../../cuda/", $file)),
            kernels: &[$($kernel),*],
        }
    };
}

/// Every file of kernels.
pub const MODULES: [Module; 8] = [
    module!("norm.cu", "norm_q8" "norm_bf16" "norm_add" "glu_q8" "glu_bf16"),
    module!("matmul_few.cu",
        "matmul_w4_1" "matmul_w4_2" "matmul_w4_4" "matmul_w4_8"
        "matmul_w8_1" "matmul_w8_2" "matmul_w8_4" "matmul_w8_8"
        "matmul_w8x16_1" "matmul_w8x16_2" "matmul_w8x16_4" "matmul_w8x16_8"),
    module!("matmul_many.cu",
        "matmul_w4_16" "matmul_w4_32" "matmul_w4_64"
        "matmul_w8_16" "matmul_w8_32" "matmul_w8_64"
        "matmul_w8x16_16" "matmul_w8x16_32" "matmul_w8x16_64"),
    module!("weights.cu",
        "embed_w4" "embed_w8" "embed_w8x16" "embed_bf16" "unpack_w4" "unpack_w8" "unpack_w8x16"
        "matmul_bf16_1" "matmul_bf16_2" "matmul_bf16_4" "matmul_bf16_8" "fill"),
    module!("rope.cu", "rope_store"),
    module!("attention_decode.cu",
        "decode_64_4" "decode_64_8" "decode_128_4" "decode_128_8" "decode_256_4" "decode_256_8"
        "decode_int8_64_4" "decode_int8_64_8" "decode_int8_128_4" "decode_int8_128_8"
        "decode_int8_256_4" "decode_int8_256_8" "decode_join"),
    module!("attention_prefill.cu", "prefill_64" "prefill_128" "prefill_256"
        "prefill_int8_64" "prefill_int8_128" "prefill_int8_256"),
    module!("sample.cu", "sample" "advance"),
];

/// Files of kernels for Hopper alone.
pub const HOPPER_MODULES: [Module; 2] = [
    module!("hopper/gemm.cu",
        "gemm_bf16_128" "gemm_bf16_256" "gemm_w4_128" "gemm_w8_128" "gemm_w8x16_128"),
    module!("hopper/attention.cu", "hopper_prefill_64" "hopper_prefill_128" "hopper_prefill_256"),
];

impl Module {
    fn is_for_hopper(&self) -> bool {
        self.file.starts_with("hopper/")
    }

    /// What the compiler is given for a card.
    #[must_use]
    pub fn assembled(&self) -> String {
        let more = if self.is_for_hopper() { HOPPER_PRELUDE } else { "" };
        format!(
            "#line 1 \"prelude.cuh\"\n{PRELUDE}\n#line 1 \"hopper/prelude.cuh\"\n{more}\n#line 1 \"{}\"\n{}",
            self.file, self.text
        )
    }
}

/// All kernels as one C++ file for the CPU.
pub(super) fn for_simt() -> String {
    let mut out = String::new();
    let before = [
        ("simt.h", SHIM),
        ("hopper/simt.h", HOPPER_SHIM),
        ("prelude.cuh", PRELUDE),
        ("hopper/prelude.cuh", HOPPER_PRELUDE),
    ];
    let modules = MODULES.iter().chain(&HOPPER_MODULES);
    let all = before
        .into_iter()
        .chain(modules.map(|module| (module.file, module.text)))
        .chain([("simt_launch.h", SHIM_LAUNCH)]);
    for (file, text) in all {
        out.push_str(&format!("#line 1 \"{file}\"\n{text}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_listed_where_it_is_defined() {
        for module in MODULES.iter().chain(&HOPPER_MODULES) {
            // Those made by a macro carry their parameters in the name, so the stem is looked for.
            for kernel in module.kernels {
                let stem = kernel.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '_');
                assert!(
                    ["_w", "_bf"]
                        .iter()
                        .any(|made| module.text.contains(stem.split(made).next().unwrap())),
                    "{kernel} is not in {}",
                    module.file
                );
            }
        }
    }
}
