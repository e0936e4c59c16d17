//! How several instances of a component share its events, where equal ones have to stay together.
//!
//! Every node and forwarder that sends to the component comes to the same instance: the hash depends on nothing but the
//! event, and the instance is the one with the highest weight for it (rendezvous hashing), so that an
//! instance that comes or goes moves only the keys that it gets or had.

use crate::id::InstanceId;
use crate::scale::PartitionBy;

/// The instance that gets an event; `None` if there is none.
pub fn pick<'i>(
    rule: &PartitionBy,
    instances: impl Iterator<Item = &'i InstanceId>,
    source: InstanceId,
    payload: &[u8],
) -> Option<InstanceId> {
    let key = key(rule, source, payload);
    instances.max_by_key(|instance| weight(key, **instance)).copied()
}

/// A payload without what the rule names is taken as a whole.
fn key(rule: &PartitionBy, source: InstanceId, payload: &[u8]) -> u64 {
    match rule {
        PartitionBy::Payload => hash(payload),
        PartitionBy::Source => hash(source.function.as_bytes()),
        PartitionBy::Json(pointer) => at(payload, pointer).map_or_else(|| hash(payload), |value| hash(&value)),
    }
}

/// The text of the value at a place; the names of an object in order, whatever their order was.
fn at(payload: &[u8], pointer: &str) -> Option<Vec<u8>> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    serde_json::to_vec(value.pointer(pointer)?).ok()
}

fn weight(key: u64, instance: InstanceId) -> u64 {
    let (high, low) = instance.function.as_u64_pair();
    mix(mix(key ^ high) ^ low)
}

/// The same on every node and in every version: nodes that disagree would tear keys apart.
fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let start = mix(bytes.len() as u64);
    let hash = words.iter().fold(start, |hash, word| mix(hash ^ u64::from_le_bytes(*word)));
    mix(hash ^ u64::from_le_bytes(last))
}

/// The finaliser of SplitMix64: each bit of what goes in changes about half of what comes out.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::NodeId;

    fn instances(count: u128) -> Vec<InstanceId> {
        let node = NodeId(Uuid::from_u128(1));
        (0..count).map(|number| InstanceId { node, function: Uuid::from_u128(number * 7919 + 1) }).collect()
    }

    #[test]
    fn the_hash_is_fixed() {
        // Other nodes, perhaps of another version, have to come to the same.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        let hashes = ["", "a", "12345678", "123456789"].map(|text| hash(text.as_bytes()) >> 48);
        assert_eq!(hashes, [42758, 24066, 37599, 31988]);
        assert_ne!(hash(b"a"), hash(b"a\0"), "the length counts");
    }

    #[test]
    fn an_instance_that_goes_moves_only_its_own_keys_and_all_get_their_share() {
        let all = instances(5);
        let (gone, left) = (all[2], [&all[..2], &all[3..]].concat());
        let mut shares = std::collections::BTreeMap::<InstanceId, u32>::new();
        for number in 0..5000_u32 {
            let payload = number.to_string();
            let pick = |among: &[InstanceId]| {
                super::pick(&PartitionBy::Payload, among.iter(), InstanceId::NONE, payload.as_bytes()).unwrap()
            };
            let (before, after) = (pick(&all), pick(&left));
            assert!(before == gone || before == after, "{payload} has moved for no reason");
            *shares.entry(before).or_default() += 1;
        }
        assert!(shares.values().all(|share| (850..1150).contains(share)), "{shares:?}");
        assert_eq!(super::pick(&PartitionBy::Payload, [].iter(), InstanceId::NONE, b""), None);
    }

    #[test]
    fn what_is_equal_by_the_rule_has_one_key() {
        let (one, two) = (instances(2)[0], instances(2)[1]);
        let json = |pointer: &str| PartitionBy::Json(pointer.into());
        let user = json("/user/id");
        let key = |rule: &PartitionBy, payload: &str| super::key(rule, one, payload.as_bytes());
        assert_eq!(key(&user, r#"{"user":{"id":7},"x":1}"#), key(&user, r#"{"x":2,"user":{"name":"a","id": 7}}"#));
        assert_ne!(key(&user, r#"{"user":{"id":7}}"#), key(&user, r#"{"user":{"id":8}}"#));
        let whole = json("");
        assert_eq!(key(&whole, r#"{"a":1,"b":2}"#), key(&whole, r#"{"b":2, "a":1}"#));
        for payload in ["no json", r#"{"user":3}"#, ""] {
            assert_eq!(key(&user, payload), key(&PartitionBy::Payload, payload), "'{payload}' is taken as a whole");
        }
        let from = |source, payload| super::key(&PartitionBy::Source, source, payload);
        assert_eq!(from(one, b"x".as_slice()), from(one, b"y"));
        assert_ne!(from(one, b"x"), from(two, b"x"));
    }
}
