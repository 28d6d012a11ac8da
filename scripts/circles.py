"""Circles of imports between files of different folders, from the `use` lines and the paths in the code.

A name counts for the file that defines it, through whatever re-exports; a re-export alone is no import, nor is a module that a path only goes
through. Tests do not count. What is behind a feature counts whether it is on or not. `scripts/test-circles` runs it.
"""

import pathlib
import re

# Comments, strings and characters are no code.
NO_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|\br(#*)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\[^']+|[^'\\])'""", re.S)
# Attributes and visibilities are no imports.
ASIDE = re.compile(r"#!?\[[^\]]*\]\s*|(?<=pub)\(in [^)]*\)")
INLINE = re.compile(r"\bmod\s+(\w+)\s*\{")
CHILD = re.compile(r"\bmod\s+(\w+)\s*;")
USE = re.compile(r"(\bpub(?:\([^)]*\))?\s+)?\buse\s+([^;]+);")
TEST = re.compile(r"#\[cfg\((?:all\()?test\b")


def end_of_item(text, start):
    """Behind the `;` or the closing brace of the item that begins at `start`."""
    depth = 0
    for found in re.compile(r"[{};]").finditer(text, start):
        depth += {"{": 1, "}": -1, ";": 0}[found[0]]
        if depth == 0:
            return found.end()
    return len(text)


def without_tests(text):
    while found := TEST.search(text):
        text = text[: found.start()] + text[end_of_item(text, found.end()) :]
    return text


def leaves(tree, before=()):
    """(path, name) of every name that a use tree brings; `*` is a name here."""
    tree = tree.strip()
    if found := re.fullmatch(r"(?:(.*?)::\s*)?\{(.*)\}", tree, re.S):
        prefix = before + tuple(part.strip() for part in (found[1] or "").split("::") if part.strip())
        depth, start, inner = 0, 0, found[2] + ","
        for at, sign in enumerate(inner):
            depth += (sign == "{") - (sign == "}")
            if sign == "," and depth == 0:
                if inner[start:at].strip():
                    yield from leaves(inner[start:at], prefix)
                start = at + 1
        return
    path, _, alias = tree.partition(" as ")
    path = before + tuple(part.strip() for part in path.split("::") if part.strip())
    if path[-1] == "self":
        path = path[:-1]
    yield path, alias.strip() or path[-1]


class Module:
    """A module: where it is written, the modules in it, what its `use` lines bring, and the rest of its text."""

    def __init__(self, crate, parent, file, code):
        self.crate, self.parent, self.file, self.children = crate, parent, file, {}
        while found := INLINE.search(code):
            end = end_of_item(code, found.start())
            body = code[found.end() : end - 1]
            code = code[: found.start()] + code[end:]
            self.children[found[1]] = Module(crate, self, file, body)
        folder = crate.folder_of(file)
        for name in CHILD.findall(code):
            inside = [path for path in (folder / f"{name}.rs", folder / name / "mod.rs") if path in crate.texts]
            if inside:
                self.children[name] = Module(crate, self, inside[0], crate.code(inside[0]))
        self.uses = [(path, name, bool(again)) for again, tree in USE.findall(code) for path, name in leaves(tree)]
        self.names = {name: path for path, name, _ in self.uses if name != "*"}
        self.code = USE.sub("", CHILD.sub("", code))
        crate.modules.append(self)

    def defines(self, name):
        return name in self.children or name in self.names or re.search(rf"\b(struct|enum|trait|fn|const|static|type|union|macro_rules!)\s+{name}\b", self.code)

    def find(self, path, seen=()):
        """The module of a path, or the file of the item that it names; None outside the crate."""
        at, first, rest = self, path[0], path[1:]
        if first in ("crate", "$crate"):
            at = self.crate.root
        elif first == "super":
            at = self.parent
        elif first != "self":
            if first not in self.children and first not in self.names:
                return None
            rest = path
        for i, part in enumerate(rest):
            if not isinstance(at, Module):
                return at
            if part == "super":
                at = at.parent
            elif part in at.children:
                at = at.children[part]
            elif part in at.names and (at, part) not in seen:
                at = at.names[part] and at.find(at.names[part], seen + ((at, part),))
            else:
                globs = (at.find(p[:-1], seen + ((at, "*"),)) for p, name, _ in at.uses if name == "*" and (at, "*") not in seen)
                inside = next((m for m in globs if isinstance(m, Module) and m.defines(part)), None)
                at = inside.find(("self", part), seen + ((at, "*"),)) if inside else at.file
        return at

    def imports(self):
        """The files of this crate that the module names."""
        heads = "|".join(["crate", "self", "super", *self.children])
        paths = [tuple(text.split("::")) for text in re.findall(rf"(?<![\w:])\$?((?:{heads})(?:::\w+)+)", self.code)]
        for path, name, again in self.uses:
            if not again or re.search(rf"\b{name}\b", self.code) if name != "*" else not again:
                paths.append(path[:-1] if name == "*" else path)
        for path in paths:
            found = self.find(path)
            yield found.file if isinstance(found, Module) else found


class Crate:
    def __init__(self, root, texts):
        """`texts`: every file below the root's folder, by path."""
        self.texts, self.modules, self.top = texts, [], root
        self.root = None
        self.root = Module(self, None, root, self.code(root))

    def code(self, path):
        return ASIDE.sub("", without_tests(NO_CODE.sub('""', self.texts[path])))

    def folder_of(self, file):
        """Where the modules of a file lie."""
        return file.parent if file.stem in ("mod", "lib", "main") or file == self.top else file.with_suffix("")

    def arrows(self):
        arrows = {}
        for module in self.modules:
            arrows.setdefault(module.file, set()).update(f for f in module.imports() if f and f != module.file)
        return arrows


def components(arrows):
    """Strongly connected components of more than one file (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(file):
        index[file] = low[file] = len(index)
        stack.append(file)
        for other in sorted(arrows.get(file, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[file] = min(low[file], low[other])
        if low[file] == index[file]:
            part = stack[stack.index(file) :]
            del stack[stack.index(file) :]
            if len(part) > 1:
                found.append(set(part))

    for file in sorted(arrows):
        if file not in index:
            visit(file)
    return found


def way(arrows, start, end, inside):
    """The shortest way from one file to another."""
    ways = {start: [start]}
    for file in (queue := [start]):
        for other in sorted(arrows.get(file, set()) & inside):
            if other not in ways:
                ways[other] = ways[file] + [other]
                queue.append(other)
    return ways[end]


def circles(arrows):
    """For each component that spans folders a circle of files, as a list that ends where it begins, and how many files are in the component."""
    for part in components(arrows):
        across = [(a, b) for a in sorted(part) for b in sorted(arrows[a] & part) if a.parent != b.parent]
        if across:
            yield min(([a] + way(arrows, b, a, part) for a, b in across), key=len), len(part)


def arrows_of(top, root):
    """The arrows of a crate on disk, by the path of its root below `top`."""
    root = pathlib.Path(root)
    files = (top / root.parent).rglob("*.rs")
    return Crate(root, {path.relative_to(top): path.read_text(encoding="utf-8") for path in files}).arrows()
