//! Which vector instructions this machine has: asked once, at start. The kernels below never ask.

/// The instruction set a [`Kernels`](super::Kernels) is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust on eight-lane arrays; whatever the compiler makes of it on any architecture.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VL, besides AVX2, FMA and F16C.
    Avx512,
    /// The same with VNNI, which multiplies bytes, but without VBMI: Cascade Lake and Cooper Lake.
    Avx512VnniAlone,
    /// The same with VNNI and VBMI, which looks up bytes.
    Avx512Vnni,
}

impl Isa {
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512VnniAlone, Isa::Avx512Vnni];

    /// The widest set this machine has.
    pub fn detect() -> Isa {
        Self::available().max().unwrap_or(Isa::Portable)
    }

    /// Every set this machine has, narrowest first: what the tests run through.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2,
            Isa::Avx512 => avx512,
            Isa::Avx512VnniAlone => vnni,
            Isa::Avx512Vnni => vnni && is_x86_feature_detected!("avx512vbmi"),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Isa::Portable
    }
}
