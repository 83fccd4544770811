//! What comes from outside and is taken apart here, as entries for fuzzers: none may panic, whatever the bytes are.

use crate::collective::fuzz_frame;
use crate::weights::fuzz_shard;

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    fuzz_shard(bytes);
}

/// A header between ranks.
pub fn frame(bytes: &[u8]) {
    fuzz_frame(bytes);
}

#[cfg(test)]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::mutate;
    #[test]
    fn files_that_are_nearly_safetensors() {
        let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"U8","shape":[4],"data_offsets":[12,16]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.extend_from_slice(&[7; 16]);
        let empty = [2u64.to_le_bytes().as_slice(), b"{}"].concat();
        mutate::each(&[&file, &empty], 50_000, super::safetensors);
    }

    #[test]
    fn headers_that_are_nearly_frames() {
        let header = |kind: u8, length: u64| {
            let mut bytes = b"FLTc".to_vec();
            bytes.extend_from_slice(&[kind, 0, 0, 0]);
            for number in [7, 9, length] {
                bytes.extend_from_slice(&u64::to_le_bytes(number));
            }
            bytes
        };
        let seeds = [header(1, 64), header(2, 3), header(4, 0), header(255, 2)];
        mutate::each(&seeds.each_ref().map(Vec::as_slice), 50_000, super::frame);
    }
}
