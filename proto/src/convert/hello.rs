//! Hello: who a worker is, and what it brings.

use super::{WireError, backend, exactly_32, kv_dtype, narrow, need, to_backend, to_kv_dtype, wrong};
use crate::wire;
use flotilla_shared::{Held, Inventory};

/// A worker's first words.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
    pub inventory: Inventory,
    pub collective_address: String,
    /// Where it runs, as far as sharing memory goes.
    pub host: String,
    /// What it has of a group before.
    pub held: Option<Held>,
    /// Where it hands on weights, and the key that who asks must show.
    pub hands_on: Option<(String, [u8; 32])>,
}

impl From<&Hello> for wire::Hello {
    fn from(hello: &Hello) -> Self {
        let inventory = &hello.inventory;
        wire::Hello {
            protocol: hello.protocol,
            version: hello.version.clone(),
            inventory: Some(wire::Inventory {
                name: inventory.name.clone(),
                device: inventory.device.clone(),
                memory_bytes: inventory.memory_bytes,
                bandwidth: inventory.bandwidth,
                compute: inventory.compute,
                expert_compute: inventory.expert_compute,
                threads: inventory.threads.into(),
                backend: to_backend(inventory.backend).into(),
                kv: to_kv_dtype(inventory.kv).into(),
            }),
            collective_address: hello.collective_address.clone(),
            host: hello.host.clone(),
            held: hello.held.as_ref().map(Into::into),
            weights_address: hello.hands_on.as_ref().map_or_else(String::new, |(address, _)| address.clone()),
            weights_key: hello
                .hands_on
                .as_ref()
                .map_or_else(Default::default, |(_, key)| key.to_vec().into()),
        }
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = WireError;

    fn try_from(hello: wire::Hello) -> Result<Self, WireError> {
        const NAME_BYTES_MAX: usize = 256;
        let inventory = need(hello.inventory, "Hello.inventory")?;
        let texts = [
            ("Hello.version", &hello.version),
            ("Hello.collective_address", &hello.collective_address),
            ("Hello.host", &hello.host),
            ("Hello.weights_address", &hello.weights_address),
            ("Inventory.name", &inventory.name),
            ("Inventory.device", &inventory.device),
        ];
        for (field, text) in texts {
            if text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
                return Err(wrong(field, format!("must be at most {NAME_BYTES_MAX} printable bytes")));
            }
        }
        let hands_on = match hello.weights_address {
            address if address.is_empty() => None,
            address => Some((address, exactly_32(&hello.weights_key, "Hello.weights_key")?)),
        };
        Ok(Hello {
            protocol: hello.protocol,
            version: hello.version,
            inventory: Inventory {
                backend: backend(inventory.backend, "Inventory.backend")?,
                kv: kv_dtype(inventory.kv, "Inventory.kv")?,
                name: inventory.name,
                device: inventory.device,
                memory_bytes: inventory.memory_bytes,
                bandwidth: inventory.bandwidth,
                compute: inventory.compute,
                expert_compute: inventory.expert_compute,
                threads: narrow(inventory.threads.into(), "Inventory.threads")?,
            },
            collective_address: hello.collective_address,
            host: hello.host,
            held: hello.held.map(Held::try_from).transpose()?,
            hands_on,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::group::WeightsId;
    use flotilla_shared::{BackendKind, KvDtype, ModelSpec, Plan, Rank};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hellos_survive_the_wire(name in "[a-z0-9/ ]{0,40}", numbers in any::<(u32, u64, u16)>()) {
            let hello = Hello {
                protocol: numbers.0,
                version: "1.2.3".into(),
                inventory: Inventory {
                    name,
                    backend: if numbers.0 % 2 == 0 { BackendKind::Cpu } else { BackendKind::Cuda },
                    kv: [KvDtype::F16, KvDtype::Bf16, KvDtype::F32][numbers.2 as usize % 3],
                    device: "cpu".into(),
                    memory_bytes: numbers.1,
                    bandwidth: 3.5e10,
                    compute: 1.5e11,
                    expert_compute: 3e11,
                    threads: numbers.2,
                },
                collective_address: "127.0.0.1:9".into(),
                host: "here".into(),
                held: (numbers.2 % 3 > 0).then(|| {
                    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
                    let plan = Plan::with_shares(&spec, &[1.0, f64::from(numbers.2)]);
                    let (stage, share) = plan.share(Rank(1));
                    Held { weights: WeightsId([9; 32]), layers: stage.layers.clone(), share: share.clone() }
                }),
                hands_on: (numbers.0 % 5 > 0).then(|| ("127.0.0.1:10".into(), [numbers.1 as u8; 32])),
            };
            prop_assert_eq!(Hello::try_from(wire::Hello::from(&hello)).unwrap(), hello);
        }
    }

    #[test]
    fn who_hands_on_weights_has_a_key() {
        let hello = wire::Hello {
            inventory: Some(wire::Inventory::default()),
            weights_address: "a:1".into(),
            weights_key: vec![1; 31].into(),
            ..Default::default()
        };
        assert_eq!(Hello::try_from(hello).unwrap_err().field, "Hello.weights_key");
    }
}
