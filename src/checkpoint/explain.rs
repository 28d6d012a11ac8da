//! Tells from the first bytes of a wrong file what it is, in a sentence.

use super::json::brief;
use crate::Result;
use crate::regular::RegularFile;

/// The number of first bytes that [`explain`] looks at.
pub(crate) const HEAD: usize = 512;

/// The converter that errors about pickles point to.
pub(super) const CONVERTER: &str = "scripts/convert-checkpoint";

/// The advice about a file of `torch.save`.
pub(super) fn pickle_advice(convert: &str) -> String {
    format!("which can run code when it is read; convert it: {CONVERTER} {convert} OUT.safetensors")
}

/// The first bytes of a file: [`HEAD`], or as many as there are.
pub(super) fn head(file: &RegularFile) -> Result<Vec<u8>> {
    file.read(0, file.bytes().min(HEAD as u64) as usize)
}

/// What a file is that begins with `head` ([`HEAD`] bytes, or all there are) and is not a
/// safetensors file; none if these bytes do not tell.
pub(crate) fn explain(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("it is empty".into());
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let shown = || {
        let text = String::from_utf8_lossy(text);
        brief(text.lines().next().unwrap_or_default().trim_end())
    };
    let begins = |start: &str| text.len() >= start.len() && text[..start.len()].eq_ignore_ascii_case(start.as_bytes());
    Some(match head {
        _ if is_lfs(head) => lfs(text),
        _ if is_torch(head) => format!("it is a PyTorch pickle, {}", pickle_advice("IN")),
        [b'P', b'K', 1..=8, 2..=8, ..] => zip(head),
        [b'G', b'G', b'U', b'F', ..] => {
            "it is a GGUF file of llama.cpp; xattn reads the safetensors files it was made of".into()
        }
        _ if is_ggml(head) => "it is a GGML file of llama.cpp; xattn reads the safetensors files it was made of".into(),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "it is a NumPy array (.npy); save it with safetensors.numpy".into(),
        [0x89, b'H', b'D', b'F', ..] => "it is an HDF5 file, as Keras saves weights".into(),
        [0x1f, 0x8b, ..] => "it is compressed by gzip; decompress it first".into(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed by zstd; decompress it first".into(),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is compressed by xz; decompress it first".into(),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => {
            "it is compressed by bzip2; decompress it first".into()
        }
        [0x89, b'P', b'N', b'G', ..] => "it is a PNG image".into(),
        [0xff, 0xd8, 0xff, ..] => "it is a JPEG image".into(),
        [0x7f, b'E', b'L', b'F', ..] => "it is an ELF program or library".into(),
        [b'%', b'P', b'D', b'F', b'-', ..] => "it is a PDF document".into(),
        [b'7', b'z', 0xbc, 0xaf, ..] => "it is a 7z archive; unpack it first".into(),
        _ if head.get(257..262) == Some(b"ustar") => "it is a tar archive; unpack it first".into(),
        _ if begins("<!doctype html") || begins("<html") => {
            format!("it is an HTML page, as servers send instead of a file: {}", shown())
        }
        _ if begins("<") && !head.contains(&0) => {
            format!("it is an XML text, as servers send instead of a file: {}", shown())
        }
        _ if is_pickle(head) => format!("it is a Python pickle, {}", pickle_advice("IN")),
        _ if (begins("{") || begins("[")) && !head.contains(&0) => format!("it is a JSON text: {}", shown()),
        _ if head.iter().all(|&b| b == 0) => "its first bytes are zero, as in a download that has not finished".into(),
        _ if is_text(head) => format!("it is a text: {}", shown()),
        _ => return None,
    })
}

/// What a file is that should be JSON; none if it begins as JSON, or cannot be told.
pub(super) fn not_json(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(HEAD)];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    // The parser's own message covers JSON values other than objects.
    let value =
        |text: &[u8]| matches!(text, [b'{' | b'[' | b'"' | b'-' | b'0'..=b'9', ..] | b"null" | b"true" | b"false");
    if !head.contains(&0) && value(head.trim_ascii()) {
        return None;
    }
    if is_safetensors(head) { Some("it is a safetensors file".into()) } else { explain(head) }
}

/// Whether a file begins as an index of shards, whatever its name.
pub(super) fn is_index(head: &[u8]) -> bool {
    let object = head.trim_ascii_start().first() == Some(&b'{') && !head.contains(&0);
    object
        && [&b"\"weight_map\""[..], b"\"total_size\""].iter().any(|name| head.windows(name.len()).any(|w| w == *name))
}

/// Whether a file begins as safetensors do: a length of 8 bytes below 2^32, then an object if any.
pub(super) fn is_safetensors(head: &[u8]) -> bool {
    matches!(head, [_, _, _, _, 0, 0, 0, 0] | [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

/// Whether a file begins as a pickle or as an archive of PyTorch, which holds one.
pub(super) fn is_pickle(head: &[u8]) -> bool {
    is_torch(head) || matches!(head, [0x80, 2..=5, ..])
}

/// Whether a file begins as PyTorch's do: a zip archive whose first entry is not another library's,
/// or a bare pickle of a long integer.
fn is_torch(head: &[u8]) -> bool {
    let archive = || is_padded_by_torch(head) || first_entry(head).is_none_or(is_torchs);
    head.starts_with(b"\x80\x02\x8a\x0a") || head.starts_with(b"PK\x03\x04") && archive()
}

/// Whether a zip's first entry is padded as PyTorch's writer pads all: an extra field `FB`.
fn is_padded_by_torch(head: &[u8]) -> bool {
    first_entry(head).is_some_and(|name| head[30 + name.len()..].starts_with(b"FB") && head[28..30] != [0, 0])
}

/// The name of a zip archive's first entry.
fn first_entry(head: &[u8]) -> Option<&[u8]> {
    let length = u16::from_le_bytes(head.get(26..28)?.try_into().ok()?);
    head.get(30..30 + usize::from(length))
}

/// Whether an entry is one that `torch.save` or TorchScript writes first.
fn is_torchs(entry: &[u8]) -> bool {
    let name = entry.rsplit(|&b| b == b'/').next().unwrap_or_default();
    [&b"data.pkl"[..], b"version", b".format_version", b".storage_alignment", b"byteorder", b"constants.pkl"]
        .contains(&name)
        || name.ends_with(b".debug_pkl")
}

fn zip(head: &[u8]) -> String {
    let npz = first_entry(head).is_some_and(|name| name.ends_with(b".npy"));
    if npz {
        "it is an archive of NumPy arrays (.npz); save them with safetensors.numpy".into()
    } else {
        "it is a zip archive; unpack it first".into()
    }
}

/// The magics of llama.cpp before GGUF, as they stand in the file.
fn is_ggml(head: &[u8]) -> bool {
    [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| head.starts_with(*magic))
}

fn is_text(head: &[u8]) -> bool {
    let whole = match std::str::from_utf8(head) {
        Ok(_) => true,
        // A character at the end may be cut.
        Err(e) => e.error_len().is_none(),
    };
    whole && !head.iter().any(|b| b.is_ascii_control() && !b.is_ascii_whitespace())
}

/// Whether a file is a pointer of Git LFS.
fn is_lfs(head: &[u8]) -> bool {
    head.trim_ascii_start().starts_with(b"version https://git-lfs.github.com/")
}

/// A pointer names the size of the file that it stands for.
fn lfs(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let size = size.map_or(String::new(), |size| format!(" of {size} bytes"));
    format!("it is a Git LFS pointer, not the file{size} that it stands for; fetch it: git lfs pull")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same, padded as PyTorch's writer does.
    fn zip_of_torch(entry: &str) -> Vec<u8> {
        let mut head = zip_of(entry);
        head[28] = 6;
        head[30 + entry.len()..][..6].copy_from_slice(b"FB\x02\0ZZ");
        head
    }

    /// A zip archive's first bytes.
    fn zip_of(entry: &str) -> Vec<u8> {
        let mut head = b"PK\x03\x04".to_vec();
        head.resize(26, 0);
        head.extend((entry.len() as u16).to_le_bytes());
        head.extend([0, 0]);
        head.extend(entry.as_bytes());
        head.extend([0; 40]);
        head
    }

    #[test]
    fn what_files_are() {
        let pickle = "it is a PyTorch pickle, which can run code when it is read; convert it: scripts/convert-checkpoint IN OUT.safetensors";
        let python = "it is a Python pickle, which can run code when it is read; convert it: scripts/convert-checkpoint IN OUT.safetensors";
        let mut tar = vec![b'a'; 257];
        tar.extend(b"ustar\x0000");
        for (head, said) in [
            (&b""[..], "it is empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4400000000\n",
                "it is a Git LFS pointer, not the file of 4400000000 bytes that it stands for; fetch it: git lfs pull",
            ),
            (
                b"version https://git-lfs.github.com/spec/v1\nsize x",
                "it is a Git LFS pointer, not the file that it stands for; fetch it: git lfs pull",
            ),
            (b"PK\x03\x04", pickle),
            (&zip_of("archive/data.pkl"), pickle),
            (&zip_of("model/.format_version"), pickle),
            (&zip_of_torch("j/data/0"), pickle),
            (&zip_of_torch("j/code/__torch__/m.py"), pickle),
            (&zip_of("j/data/0"), "it is a zip archive; unpack it first"),
            (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46", pickle),
            (b"\x80\x04\x95\x01", python),
            (&zip_of("arr_0.npy"), "it is an archive of NumPy arrays (.npz); save them with safetensors.numpy"),
            (&zip_of("README.md"), "it is a zip archive; unpack it first"),
            (b"GGUF\x03\0\0\0", "it is a GGUF file of llama.cpp; xattn reads the safetensors files it was made of"),
            (b"tjgg\x01\0\0\0", "it is a GGML file of llama.cpp; xattn reads the safetensors files it was made of"),
            (b"\x93NUMPY\x01\0v\0", "it is a NumPy array (.npy); save it with safetensors.numpy"),
            (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras saves weights"),
            (b"\x1f\x8b\x08", "it is compressed by gzip; decompress it first"),
            (b"\x28\xb5\x2f\xfd\0", "it is compressed by zstd; decompress it first"),
            (b"\xfd7zXZ\0", "it is compressed by xz; decompress it first"),
            (b"BZh91AY&SY", "it is compressed by bzip2; decompress it first"),
            (b"\x89PNG\r\n\x1a\n", "it is a PNG image"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", "it is a JPEG image"),
            (b"\x7fELF\x02\x01\x01\0", "it is an ELF program or library"),
            (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "it is a PDF document"),
            (b"BZhou", "it is a text: BZhou"),
            (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive; unpack it first"),
            (&tar, "it is a tar archive; unpack it first"),
            (b"\n<!DOCTYPE html>\n<html>", "it is an HTML page, as servers send instead of a file: <!DOCTYPE html>"),
            (b"<HTML><body>404", "it is an HTML page, as servers send instead of a file: <HTML><body>404"),
            (
                b"<?xml version='1.0'?><Error/>",
                "it is an XML text, as servers send instead of a file: <?xml version='1.0'?><Error/>",
            ),
            (b"{\"error\":\"Repository not found\"}", "it is a JSON text: {\"error\":\"Repository not found\"}"),
            (b"\xef\xbb\xbf[1]", "it is a JSON text: [1]"),
            (&[0; 64], "its first bytes are zero, as in a download that has not finished"),
            (b"Invalid username or password.", "it is a text: Invalid username or password."),
            ("Größ".as_bytes().split_last().unwrap().1, "it is a text: Grö\u{fffd}"),
        ] {
            assert_eq!(explain(head).as_deref(), Some(said), "{}", head.escape_ascii());
        }
        assert_eq!(explain(b"\x01\x02\x03\x04\xff"), None);
        // One line at most, and of it no more than a name's length.
        assert!(explain(&[b'a'; HEAD]).unwrap().len() < 200);
    }

    #[test]
    fn json_and_safetensors() {
        assert_eq!(not_json(b" {\"weight_map\":{}}"), None);
        assert_eq!(not_json(b"\x7b\0\0\0\0\0\0\0{").as_deref(), Some("it is a safetensors file"));
        assert_eq!(not_json(b"[]"), None);
        assert_eq!(not_json(b"Entry not found").as_deref(), Some("it is a text: Entry not found"));
        assert_eq!(not_json(b"").as_deref(), Some("it is empty"));
        assert!(is_index(b" {\"weight_map\":{") && is_index(b"{\"metadata\":{\"total_size\":3}"));
        assert!(!is_index(b"{\0\0\0\0\0\0\0{\"weight_map\"") && !is_index(b"{\"error\":\"none\"}"));
        assert!(is_safetensors(b"\x80\x02\0\0\0\0\0\0{") && !is_safetensors(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9"));
    }
}
