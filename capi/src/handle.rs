//! Handles are keys into one table: a freed or wrong handle is detected, never followed.
//!
//! The table holds `Arc`s, which calls clone: another thread may free a handle in use.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use crate::status::{Fault, Result, xattn_status};

/// What a handle may stand for.
pub(crate) trait Kind: Any + Send + Sync {
    /// The word for messages, for example `xattn_device`.
    const NAME: &'static str;
}

/// What a handle stands for, and the word for its kind.
struct Entry {
    kind: &'static str,
    value: Arc<dyn Any + Send + Sync>,
}

struct Table {
    entries: HashMap<usize, Entry>,
    /// Grows for ever: a key never comes back, so that a stale one cannot meet a newcomer.
    next: u64,
}

static TABLE: LazyLock<RwLock<Table>> = LazyLock::new(|| RwLock::new(Table { entries: HashMap::new(), next: 1 }));

/// Odd steps of 16 keep keys apart from null and from what a program is likely to pass by mistake;
/// nothing depends on it. None where an address has no room for the number: after 2^28 handles
/// where addresses have 32 bits.
fn key_of<Address: TryFrom<u64>>(number: u64) -> Option<Address> {
    Address::try_from(number.checked_mul(16)? | 0xD).ok()
}

fn invalid(call: &str, argument: &str, expected: &str, actual: impl std::fmt::Display) -> Fault {
    let text = format!("{call}: {argument}: expected a handle of {expected}, got {actual}");
    Fault { status: xattn_status::XATTN_STATUS_INVALID_HANDLE, text }
}

/// A new handle for `value`, as the opaque pointer of the header.
pub(crate) fn register<K: Kind, P>(value: K) -> Result<*mut P> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(key) = key_of::<usize>(table.next) else {
        let text = format!("{}: no handle is left: {} were made", K::NAME, table.next - 1);
        return Err(Fault { status: xattn_status::XATTN_STATUS_OUT_OF_MEMORY, text });
    };
    table.next += 1;
    table.entries.insert(key, Entry { kind: K::NAME, value: Arc::new(value) });
    Ok(std::ptr::without_provenance_mut(key))
}

/// What a handle stands for.
pub(crate) fn find<K: Kind, P>(call: &str, argument: &str, handle: *const P) -> Result<Arc<K>> {
    if handle.is_null() {
        return Err(invalid(call, argument, K::NAME, "null"));
    }
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    match table.entries.get(&handle.addr()) {
        Some(Entry { kind, value }) => value.clone().downcast().map_err(|_| invalid(call, argument, K::NAME, kind)),
        None => Err(invalid(call, argument, K::NAME, "one that was freed or never made")),
    }
}

/// Forgets a handle. Null is fine and does nothing.
pub(crate) fn free<K: Kind, P>(call: &str, handle: *mut P) -> Result {
    if handle.is_null() {
        return Ok(());
    }
    let found: Arc<K> = find(call, "handle", handle)?;
    let removed = TABLE.write().unwrap_or_else(PoisonError::into_inner).entries.remove(&handle.addr());
    // If two threads free one handle at once, the second one gets the error.
    let result = removed.map(drop).ok_or_else(|| invalid(call, "handle", K::NAME, "one that was freed or never made"));
    // Dropping a device may take long, so it happens outside the lock.
    drop(found);
    result
}

/// Handles that exist now.
pub(crate) fn count() -> usize {
    TABLE.read().unwrap_or_else(PoisonError::into_inner).entries.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_come_back_on_32_bits() {
        assert_eq!(key_of::<u32>(1), Some(0x1D));
        assert_eq!(key_of::<u32>((1 << 28) - 1), Some(0xFFFF_FFFD));
        assert_eq!(key_of::<u32>(1 << 28), None);
        assert_eq!(key_of::<u64>(1 << 28), Some(0x1_0000_000D));
        assert_eq!(key_of::<u64>(u64::MAX / 16 + 1), None);
    }
}
