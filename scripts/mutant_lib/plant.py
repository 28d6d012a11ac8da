"""Reads tests/mutants and plants all mutants in a copy of the sources."""

import dataclasses
import os
import pathlib
import re
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "tests" / "mutants"
FIELDS = {"name", "file", "concept", "old", "new", "op", "checks", "gate", "equivalent", "survives"}
# The condition, in a `new` that says itself where it stands.
WORD = re.compile(r"\bMUTANT\b")
# The function that every kernel's text passes on its way to the compiler.
HOOKS = [
    ("src/backend/wgpu/shader_text.rs", "            body,\n            prelude", "            body: crate::mutants::text(body),\n            prelude"),
    ("src/backend/wgpu/shader_text.rs", "        if !self.libraries.contains(&text)",
     "        let text = crate::mutants::text(text);\n        if !self.libraries.contains(&text)"),
    ("src/backend/wgpu/shader_text.rs", "let text = template\n", "let text = crate::mutants::text(template)\n"),
    ("src/backend/wgpu/shader_text.rs", "&template.replace(", "&crate::mutants::text(template).replace("),
    ("src/backend/cuda/compile/kernel_text.rs", "text.push_str(file.text);", "text.push_str(crate::mutants::text(file.text));"),
]


# Cargo tells packages with one name and target folder apart by version: the copy's must differ.
MARK = "0.0.0-mutants"
MEMBERS = ["capi/Cargo.toml", "tests/sanitized/Cargo.toml"]
VERSION = re.compile(r'^(version = )"[^"]*', re.MULTILINE)
LOCKED = re.compile(r'(name = "xattn(?:-capi|-sanitized)?"\nversion = )"[^"]*')


class Stale(Exception):
    """A file of tests/mutants that does not fit the sources, or is not one."""


@dataclasses.dataclass
class Mutant:
    area: str
    name: str
    file: str
    concept: str
    old: str
    new: str
    checks: list
    full: list
    op: str = ""
    gate: str = ""
    equivalent: str = ""
    survives: str = ""


def areas():
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(names):
    """The mutants of some areas, in their order."""
    mutants, seen = [], {}
    for area in names:
        path = FOLDER / f"{area}.toml"
        try:
            text = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Stale(f"{path.name}: {error}") from None
        for entry in text["mutant"]:
            name = entry.get("name")
            fault = f"{path.name}: {name}"
            if missing := {"name", "file", "concept", "old", "new"} - entry.keys():
                raise Stale(f"{fault}: no {sorted(missing)[0]}")
            if unknown := entry.keys() - FIELDS:
                raise Stale(f"{fault}: unknown field {sorted(unknown)[0]}")
            if name in seen:
                raise Stale(f"{fault}: {seen[name]}.toml has one of this name, too")
            seen[name] = area
            first = entry.pop("checks", [])
            checks = [*first, *(check for check in text["checks"] if check not in first)]
            mutants.append(Mutant(area=area, checks=checks, full=text.get("full", []), **entry))
    return mutants


def is_text(path):
    """Whether a file reaches its compiler when the program runs."""
    return path.startswith(("kernels/", "shaders/"))


def spans(text, mutants, path):
    """Where the old texts of a file's mutants stand, in ascending order."""
    found = []
    for mutant in mutants:
        count = text.count(mutant.old) if mutant.old else 0
        if count != 1:
            raise Stale(f"{mutant.area}.toml: {mutant.name}: its old text stands {count} times in {path}, not once")
        start = text.index(mutant.old)
        found.append((start, start + len(mutant.old), mutant))
    found.sort(key=lambda span: span[:2])
    return found


def switched(mutant, condition):
    """Rust in which the condition chooses between the old and the new text."""
    if WORD.search(mutant.new):
        return WORD.sub(condition, mutant.new)
    if mutant.old.rstrip().endswith(";"):
        return f"if {condition} {{ {mutant.new} }} else {{ {mutant.old} }}"
    return f"(if {condition} {{ {mutant.new} }} else {{ {mutant.old} }})"


def planted(mutants, read):
    """The files that change, by path. `read` gives the text of one."""
    files, numbers = {}, {mutant.name: i for i, mutant in enumerate(mutants)}
    by_path = {}
    for mutant in mutants:
        by_path.setdefault(mutant.file, []).append(mutant)
    for path, own in by_path.items():
        try:
            text = read(path)
        except OSError as error:
            raise Stale(f"{own[0].area}.toml: {own[0].name}: {path}: {error.strerror}") from None
        found = spans(text, own, path)
        if is_text(path):
            continue
        for (_, end, before), (start, _, after) in zip(found, found[1:]):
            if start < end:
                raise Stale(f"{path}: the old texts of {before.name} and {after.name} overlap")
        module = "xattn::mutants" if path.startswith(("capi/", "src/bin/")) else "crate::mutants"
        for start, end, mutant in reversed(found):
            text = text[:start] + switched(mutant, f"{module}::on({numbers[mutant.name]})") + text[end:]
        files[path] = text
    for path, old, new in HOOKS:
        text = files.get(path) or read(path)
        if text.count(old) != 1:
            raise Stale(f"scripts/mutant_lib/plant.py: the hook {old.strip()!r} stands {text.count(old)} times in {path}, not once")
        files[path] = text.replace(old, new)
    # Expressions stand in parentheses, wherever they are.
    for path in ("src/lib.rs", "src/bin/xattn/main.rs", "capi/src/lib.rs"):
        files[path] = "#![allow(unused_parens)]\n" + (files.get(path) or read(path))
    # Without debug information: compiling and linking take half the time.
    files["Cargo.toml"] = marked(read("Cargo.toml")) + "\n[profile.dev.package.xattn]\ndebug = false\n"
    for path in MEMBERS:
        files[path] = marked(read(path))
    files["Cargo.lock"] = LOCKED.sub(rf'\1"{MARK}', read("Cargo.lock"))
    files["src/lib.rs"] += "\n#[doc(hidden)]\npub mod mutants;\n"
    files["src/mutants.rs"] = module_of(mutants)
    return files


def marked(manifest):
    """A manifest of a package with the copy's version."""
    return VERSION.sub(rf'\1"{MARK}', manifest, count=1)


def module_of(mutants):
    """The module of the copy that knows which mutant is on."""
    texts = [
        f'    ({i}, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/{m.file}")), {raw(m.old)}, {raw(m.new)}),\n'
        for i, m in enumerate(mutants) if is_text(m.file)
    ]
    names = ", ".join(f'"{m.name}"' for m in mutants)
    template = (pathlib.Path(__file__).parent / "switch.rs").read_text()
    return template.replace("/* names */", names).replace("    /* texts */\n", "".join(texts))


def raw(text):
    return f'r####"{text}"####'


def sources():
    """The files of the working tree that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode().split("\0")
    return sorted(path for path in set(listed) if path and (ROOT / path).is_file())


def target():
    """Where cargo builds."""
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target")


def plant(mutants):
    """Brings the copy up to date and returns its folder. Files that are the same keep their time, so that only what changed is compiled."""
    tree = target() / "mutants" / "tree"
    changed = planted(mutants, lambda path: (ROOT / path).read_text())
    wanted = {path: None for path in sources()} | changed
    for folder, _, files in os.walk(tree):
        for file in files:
            path = pathlib.Path(folder, file)
            if str(path.relative_to(tree)) not in wanted:
                path.unlink()
    for path, text in wanted.items():
        data = (ROOT / path).read_bytes() if text is None else text.encode()
        to = tree / path
        if not to.exists() or to.read_bytes() != data:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
        if text is None and to.stat().st_mode != (ROOT / path).stat().st_mode:
            to.chmod((ROOT / path).stat().st_mode)
    return tree
