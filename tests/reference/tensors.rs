//! A checkpoint's tensors as f32, read here and nowhere else: bf16 and MXFP4 by their definitions.

use candle_core::{Device, Result, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::Path;

/// E2M1: sign, two bits of exponent, one of mantissa.
pub const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Every tensor of every safetensors file of a folder, whatever an index says.
pub struct Tensors {
    by_name: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Tensors {
    pub fn load(dir: &Path) -> Tensors {
        let mut by_name = HashMap::new();
        for file in std::fs::read_dir(dir).expect("the folder can be listed") {
            let path = file.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.starts_with("model") && name.ends_with(".safetensors") {
                let bytes = std::fs::read(&path).expect("the file can be read");
                for (name, view) in SafeTensors::deserialize(&bytes).expect("a safetensors file").tensors() {
                    by_name.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
                }
            }
        }
        Tensors { by_name }
    }

    fn of(&self, name: &str, wanted: Dtype) -> (&[usize], &[u8]) {
        let (dtype, shape, bytes) = self.by_name.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(*dtype, wanted, "{name}");
        (shape, bytes)
    }

    /// A bf16 tensor.
    pub fn dense(&self, name: &str) -> Result<Tensor> {
        let (shape, bytes) = self.of(name, Dtype::BF16);
        let values = bytes.chunks(2).map(|two| f32::from_bits(u32::from_le_bytes([0, 0, two[0], two[1]])));
        Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
    }

    /// `NAME_blocks` [E, out, in/32, 16] and `NAME_scales` [E, out, in/32] → per expert [out, in].
    pub fn mxfp4(&self, name: &str) -> Result<Vec<Tensor>> {
        let (shape, blocks) = self.of(&format!("{name}_blocks"), Dtype::U8);
        let (_, scales) = self.of(&format!("{name}_scales"), Dtype::U8);
        let &[experts, rows, groups, 16] = shape else { panic!("{name} has shape {shape:?}") };
        let element =
            |code: u8| if code & 8 == 0 { FP4[usize::from(code)] } else { -FP4[usize::from(code & 7)] };
        let values = blocks.chunks(16).zip(scales).flat_map(|(block, scale)| {
            let scale = 2f32.powi(i32::from(*scale) - 127);
            block.iter().flat_map(move |byte| [element(byte & 15) * scale, element(byte >> 4) * scale])
        });
        let all = Tensor::from_iter(values, &Device::Cpu)?.reshape((experts, rows, groups * 32))?;
        (0..experts).map(|expert| all.get(expert)?.contiguous()).collect()
    }
}
