"""What scripts/test-converter checks without torch: choices, indices, outputs, and what a file is that torch.save did not write."""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile

CONVERTER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "convert-checkpoint")


def convert(source, target, *options):
    """Exit status and messages."""
    done = subprocess.run([sys.executable, CONVERTER, source, target, *options], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def refusal(call, *arguments):
    """The message with which a function of the converter gives up."""
    try:
        return f"no refusal, but {call(*arguments)}"
    except SystemExit as refused:
        return refused.code


def module():
    """The converter as a module."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("converter", CONVERTER)
    converter = importlib.util.module_from_spec(importlib.util.spec_from_loader("converter", loader))
    loader.exec_module(converter)
    return converter


def pure():
    """Functions of the converter that need no torch."""
    converter = module()

    # Nested dicts; any value stands for a tensor.
    assert converter.unpack({"a": 1}) == ({"a": 1}, [])
    assert converter.unpack({"model": {"state_dict": {"a": 1}}, "epoch": 3}) == ({"a": 1}, ["epoch"])
    assert converter.unpack({"module": {"a": 1}, "buffer_names": [], "optimizer": None}) == ({"a": 1}, ["buffer_names", "optimizer"])
    assert converter.unpack({"model": 7}) == ({"model": 7}, [])
    # An EMA beside the model: one of them is named.
    both = {"model": {"a": 1}, "ema": {"state_dict": {"module.a": 2}, "decay": 0.9}, "epoch": 3}
    assert refusal(converter.unpack, both) == "error: 2 states have the same names: model, ema.state_dict; --state chooses"
    assert converter.unpack(both, "model") == ({"a": 1}, ["ema", "epoch"])
    for state in ("ema", "ema.state_dict"):
        assert converter.unpack(both, state) == ({"module.a": 2}, ["model", "epoch", "decay"])
    for state, fault in (("emma", "a key of the top (model, ema, epoch), found emma"), ("ema.x", "a key of ema (state_dict, decay), found x")):
        assert refusal(converter.unpack, both, state) == f"error: --state {state}: expected {fault}"
    assert refusal(converter.unpack, both, "epoch") == "error: expected a dict of tensors, found int"
    assert converter.unpack({"model": {"a": 1}, "optimizer": {"state": {0: 1}, "param_groups": []}})[0] == {"a": 1}
    deep = {"a": 1}
    for _ in range(100000):
        deep = {"model": deep}
    assert converter.unpack(deep) == ({"a": 1}, [])
    while deep:  # outermost first: Python frees nested dicts by recursion
        deep = deep.pop("model", None)
    assert refusal(converter.unpack, [1]) == "error: expected a dict of tensors, found list"

    # Numbers stand for tensors: if a dict holds none, its inner dicts are candidates, and the only
    # one is taken.
    def choice(loaded, wanted=None):
        try:
            return converter.unpack(loaded, wanted, lambda value: isinstance(value, int))
        except SystemExit as refused:
            return refused.code

    two = {"student": {"a": 1}, "teacher": {"a": 2}}
    chooses = "student, teacher; --state chooses"
    assert choice(two) == f"error: the top holds no tensor, 2 dicts inside the file do: {chooses}"
    chooses = "model.student, model.teacher; --state chooses"
    for wanted in (None, "model"):
        assert choice({"model": two, "epoch": "3"}, wanted) == f"error: model holds no tensor, 2 dicts inside the file do: {chooses}"
    assert choice({"model": two}, "model.teacher") == ({"a": 2}, ["student"])
    many = {f"copy{i}": {"a": 1} for i in range(5)}
    chooses = "copy0, copy1, copy2 and 2 more; --state chooses"
    assert choice(many) == f"error: the top holds no tensor, 5 dicts inside the file do: {chooses}"
    # A loss beside the weights is no reason to write it alone.
    net = {"net": {"a": 1}, "epoch": "3", "loss": 7}
    for path, loaded in (("", net), ("model", {"model": net})):
        at, place = (f"{path}.net", path) if path else ("net", "the top")
        chooses = f"{at}; --state chooses (--state '{path}': those of {place})"
        assert choice(loaded) == f"error: {place} holds tensors, and a dict inside it does: {chooses}"
        assert choice(loaded, path) == (net, []) and choice(loaded, at)[0] == {"a": 1}
    assert choice([1], "") == "error: expected a dict of tensors, found list"
    assert choice({"net": {"weights": {"a": 1}}, "epoch": "3"}) == ({"a": 1}, ["epoch"])
    empty = {"state_dict": {}, "student": {"a": 1}}
    assert choice(empty) == "error: state_dict holds no tensor, a dict inside the file does: student; --state chooses"
    # An optimizer's state is no model.
    assert choice({"optimizer": {"state": {0: {"exp_avg": 1}}}, "epoch": "3"}) == ({"optimizer": {"state": {0: {"exp_avg": 1}}}, "epoch": "3"}, [])
    assert choice({"epoch": "3"}) == ({"epoch": "3"}, [])
    around = {"inner": {}}
    around["inner"]["around"] = around
    assert choice(around) == (around, [])
    for _ in range(100000):
        deep = {"net": deep}
    assert choice(deep) == (deep, [])
    while deep:
        deep = deep.pop("net", None)
    # A dict that holds itself, at once or by way of another.
    itself = {}
    itself["model"] = itself
    one, other = {}, {}
    one["state_dict"], other["model"] = other, one
    for loaded in (itself, one, {"model": itself}):
        assert refusal(converter.unpack, loaded) == "error: expected a dict of tensors, found one that holds itself"

    for version in ("1.13.1", "2.5.1", "2.5.1+cu121", "2.6.0a0+git1234", "2.6.0.dev20241101", "2.6.0rc1", "nightly"):
        expected = f"error: torch 2.6 or newer is needed, found {version}: before, files can run code (CVE-2025-32434)"
        assert refusal(converter.expect_safe, version) == expected, version
    for version in ("2.6.0", "2.6.0+cpu", "2.10.1", "2.7.0a0", "3.0", "10.0.0"):
        converter.expect_safe(version)

    assert converter.clean("module.module.a._checkpoint_wrapped_module.b") == "a.b"
    hostile = "a\nleft out: nothing\x1b[2J\x9bm\u202e größe"
    printed = r"a\nleft out: nothing\x1b[2J\x9bm\u202e größe"
    assert converter.escaped(hostile) == printed and converter.shown([hostile, "b"]) == f"{printed}, b"

    assert converter.shown(["a", "b", "c"]) == "a, b, c" and converter.shown(list("abcde")) == "a, b, c and 2 more"
    inert = converter.stand_in("posix.mkdir")
    made = inert("harm", mode=1)
    made.__setstate__({"a": 1})
    assert (inert.__module__, inert.__qualname__, vars(made)) == ("posix", "mkdir", {}) and not os.path.exists("harm")


def indices():
    """Which files an index, or a folder with one, names; a stranger's index names no file elsewhere."""
    converter = module()
    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name)

        def index(weight_map):
            with open(path("pytorch_model.bin.index.json"), "w") as file:
                json.dump({"weight_map": weight_map}, file)
            return path("pytorch_model.bin.index.json")

        parts = [path(f"pytorch_model-0000{i}-of-00002.bin") for i in (1, 2)]
        for part in [*parts, path("optimizer.pt"), path("training_args.bin")]:
            open(part, "w").close()
        names = [os.path.basename(part) for part in parts]
        whole = index({"a": names[1], "b": names[0], "c": names[0]})
        assert converter.shards(whole) == converter.shards(folder) == (parts, [])
        assert converter.shards(index({})) == converter.shards(index({}), ["b"]) == (parts, [])
        assert converter.shards(path("a.pt")) == converter.shards(path("a.pt"), ["b"]) == ([path("a.pt")], [])
        # What is wanted is in one of them, and the others need not be there.
        names_of = {"module.query_tokens": names[0], "lm.a": "absent.bin", "lm.b": names[1]}
        others = [path("absent.bin"), parts[1]]
        assert converter.shards(index(names_of), ["query_tokens", "Qformer."]) == ([parts[0]], others)
        hint = "; with --only PREFIX those are enough that hold what is wanted"
        assert refusal(converter.shards, whole) == f"error: {whole}: missing shards: absent.bin{hint}"
        assert refusal(converter.shards, whole, ["lm."]) == f"error: {whole}: missing shards: absent.bin"
        wanted = f"error: {whole}: weight_map: expected names that begin with one of a, b, c and 1 more, found none"
        assert refusal(converter.shards, whole, list("abcd")) == wanted
        for name in ("../a.bin", "/a.bin", "b/a.bin", "..", "", 7):
            wanted = f"error: {whole}: weight_map: expected files beside the index, found {name!r}"
            assert refusal(converter.shards, index({"a": name})) == wanted, name
        assert refusal(converter.shards, index({"a": "absent.bin"})) == f"error: {whole}: missing shards: absent.bin{hint}"
        for text in ("[", "7", '{"weight_map": 7}'):
            with open(whole, "w") as file:
                file.write(text)
            assert refusal(converter.shards, folder) == f"error: {whole}: not an index with a weight_map of files", text
        os.remove(whole)
        wanted = "expected one index (pytorch_model.bin.index.json) or one pytorch_model.bin, found none"
        assert refusal(converter.shards, folder) == f"error: {folder}: {wanted}"
        open(path("pytorch_model.bin"), "w").close()
        assert converter.shards(folder) == ([path("pytorch_model.bin")], [])

        # The output is never an input file, by any path, even one that is not read.
        target, link = path("out.safetensors"), path("link")
        os.symlink("out.safetensors", link)
        for held, source, options in ((None, target, ()), (None, link, ()), (parts[0], whole, ()), (parts[1], whole, ("--only", "query_tokens"))):
            index(names_of if options else {"a": names[0]})
            os.link(held, target) if held else open(target, "w").close()
            status, text = convert(source, target, *options)
            line = f"convert-checkpoint: error: the output is the input: {target} is {held or source}"
            assert (status, text.splitlines()[-1], os.path.getsize(target)) == (2, line, 0), text
            os.remove(target)
        # Nor any other file of the checkpoint's folder, but for one that has an output's name.
        index({"a": names[0]})
        with open(path("config.json"), "w") as file:
            file.write("{}")
        elsewhere = os.path.join(folder, "elsewhere")
        os.mkdir(elsewhere)
        output = os.path.join(elsewhere, "out.safetensors")
        for held in ("config.json", "optimizer.pt", "pytorch_model.bin.index.json"):
            before = open(path(held), "rb").read()
            for make in (os.symlink, os.link):
                make(path(held), output)
                for source, options in ((folder, ()), (folder, ("--only", "a")), (whole, ())):
                    status, text = convert(source, output, *options)
                    what = "is the input" if source == whole and held in whole else "belongs to the checkpoint"
                    line = f"convert-checkpoint: error: the output {what}: {output} is {path(held)}"
                    assert (status, text.splitlines()[-1], open(path(held), "rb").read()) == (2, line, before), text
                os.remove(output)
        open(path("model.safetensors"), "w").close()
        os.symlink(path("model.safetensors"), output)
        assert converter.expect_apart(output, folder, []) is None
        os.remove(output)

        # Names that an index places in a file that lacks them.
        index({"a": names[0], "module.ghost": names[0], "lm.ghost": names[1]})
        assert converter.ghosts(folder, parts, {"a"}) == ["ghost", "lm.ghost"]
        assert converter.ghosts(folder, parts[:1], {"a"}) == converter.ghosts(folder, parts, {"a"}, ["gh", "a"]) == ["ghost"]
        wanted = f"error: {whole}: it names tensors that their files lack: ghost"
        assert refusal(converter.ghosts, folder, parts, {"a"}, ["a", "ghost"]) == wanted
        assert converter.ghosts(parts[0], parts[:1], {"a"}) == []


def outputs():
    """Files that appear whole, links, pipes and devices of our own. Nothing lies in /dev."""
    from whole_file import place, whole, write_text

    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name)
        write_text(path("new"), "one")
        write_text(path("file"), "before")
        os.chmod(path("file"), 0o640)
        os.symlink("file", path("link"))
        os.symlink("later", path("dangling"))
        write_text(path("link"), "two")
        write_text(path("dangling"), "three")
        texts = {name: open(path(name)).read() for name in ("new", "file", "later")}
        assert texts == {"new": "one", "file": "two", "later": "three"}, texts
        assert os.path.islink(path("link")) and os.path.islink(path("dangling"))
        assert stat.S_IMODE(os.stat(path("file")).st_mode) == 0o640
        os.mkfifo(path("pipe"))
        reader = subprocess.Popen(["timeout", "20", "cat", path("pipe")], stdout=subprocess.PIPE)
        write_text(path("pipe"), "four")
        assert reader.communicate(timeout=20)[0] == b"four" and stat.S_ISFIFO(os.stat(path("pipe")).st_mode)
        # A writer that replaces what has the name, as safetensors does.
        def replace(name, text):
            with whole(path(name)) as place:
                assert os.path.abspath(place) != path(name)
                with open(path("beside"), "w") as file:
                    file.write(text)
                os.replace(path("beside"), place)

        reader = subprocess.Popen(["timeout", "20", "cat", path("pipe")], stdout=subprocess.PIPE)
        replace("pipe", "replaced")
        assert reader.communicate(timeout=20)[0] == b"replaced" and stat.S_ISFIFO(os.lstat(path("pipe")).st_mode)
        replace("new", "replaced")
        assert open(path("new")).read() == "replaced"
        assert refusal(place, folder) == f"error: {folder}: expected the name of a file, found a folder"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path("socket"))
            what = "a socket, or something else that is neither file, device nor named pipe"
            assert refusal(place, path("socket")) == f"error: {path('socket')}: expected the name of a file, found {what}"
        assert refusal(place, path("absent/x")) == f"error: {path('absent/x')}: its folder is not there"
        # Devices of our own: one that takes everything (1, 3), one that is always full (1, 7).
        try:
            for name, minor in (("null", 3), ("full", 7)):
                os.mknod(path(name), 0o600 | stat.S_IFCHR, os.makedev(1, minor))
            open(path("null"), "w").close()
        except PermissionError:
            print("skipped: only root makes devices")
        else:
            os.symlink("null", path("to-null"))
            for name in ("null", "to-null"):
                write_text(path(name), "five")
                replace(name, "five")
            wanted = f"error: {path('full')}: No space left on device"
            assert refusal(write_text, path("full"), "five") == wanted
            assert all(stat.S_ISCHR(os.lstat(path(name)).st_mode) for name in ("null", "full")) and os.path.islink(path("to-null"))
        for name in ("null", "full", "to-null"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path(name))
        # What fails leaves nothing behind.
        try:
            write_text(path("file"), 7)
        except TypeError:
            pass
        assert open(path("file")).read() == "two"
        assert sorted(os.listdir(folder)) == ["dangling", "file", "later", "link", "new", "pipe", "socket"]


def explanations():
    """What a file is that torch.save did not write, by its first bytes."""
    converter = module()
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")

        def said(content):
            with open(path, "wb") as file:
                file.write(content)
            return converter.explain(path)

        def archive(*names):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as file:
                for name in names:
                    file.writestr(name, "text")
            return packed.getvalue()

        cut = "cut short or damaged: it begins as a zip archive, as torch.save writes it, and has no end of one"
        whole = archive("a/data.pkl", "a/data/0", "a/version")
        for content, what in (
            (b"", "it is empty"),
            (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer, not the file that it stands for; fetch it: git lfs pull"),
            (len(header).to_bytes(8, "little") + header + bytes(4), "it is a safetensors file already; there is nothing to convert"),
            (whole, None),
            (whole[: len(whole) // 2], cut),
            (b"PK\x03\x04", cut),
            (archive("j/data/0", "j/data.pkl", "j/constants.pkl"), "it is a TorchScript archive, a program; save its weights: "
             "torch.save(torch.jit.load(IN).state_dict(), OUT)"),
            (archive("a.npy"), "it is an archive of NumPy arrays (.npz); save them with safetensors.numpy"),
            (archive("a\x1bb", "c", "d", "e"), r"it is a zip archive that torch.save did not write, with a\x1bb, c, d and 1 more in it; unpack it first"),
            (b"\x80\x02\x8a\x0a", None),
            (b"GGUF\x03\0\0\0", "it is a GGUF file of llama.cpp"),
            (b"\x1f\x8b\x08", "it is compressed by gzip; decompress it first"),
            (b"\x89PNG\r\n\x1a\n", "it is a PNG image"),
            (b"\xff\xd8\xff\xe0", "it is a JPEG image"),
            (b"\x7fELF\x02", "it is an ELF program or library"),
            (b"%PDF-1.7", "it is a PDF document"),
            (bytes(257) + b"ustar", "it is a tar archive; unpack it first"),
            (bytes(600), "its first bytes are zero, as in a download that has not finished"),
            (b"\n<!DOCTYPE html>\n<html>", "it is an HTML page, as servers send instead of a file: <!DOCTYPE html>"),
            (b"<?xml?><Error/>", "it is an XML text, as servers send instead of a file: <?xml?><Error/>"),
            (b'{"error":"none"}', 'it is a JSON text: {"error":"none"}'),
            ("Größe\n".encode(), "it is a text: Größe"),
            (b"(dp0\nVa\np1\nI1\ns.", "it is a pickle of protocol 0, which torch.save does not write; save its tensors with torch.save"),
            (b"ccollections\nOrderedDict\np0\n", "it is a pickle of protocol 0, which torch.save does not write; save its tensors with torch.save"),
            (b"\x01\x02\xff", "it is no file that torch.save wrote"),
        ):
            assert said(content) == what, (content[:20], said(content))
