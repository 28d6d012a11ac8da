"""Files that scripts write under a name of the user's: the rule of src/bin/xattn/output.rs.

A regular file or a new name is written beside its place and renamed; a symbolic link is followed; a device or named pipe is written to; a folder
or socket is refused. No file is replaced by something of another kind, and none beside it is touched.
"""
import contextlib
import os
import shutil
import stat
import tempfile


def place(path):
    """The name that a finished file gets, or None where the path is opened and written to. Leaves with a message where neither can be."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}")
    if mode is None or stat.S_ISREG(mode):
        target = os.path.realpath(path)
        if mode is not None and not (os.path.exists(target) and os.path.samefile(path, target)):
            return None
        if not os.path.isdir(os.path.dirname(target)):
            raise SystemExit(f"error: {path}: its folder is not there")
        return target
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return None
    kind = "a folder" if stat.S_ISDIR(mode) else "a socket, or something else that is neither file, device nor named pipe"
    raise SystemExit(f"error: {path}: expected the name of a file, found {kind}")


@contextlib.contextmanager
def whole(path):
    """The name to write to, whose file becomes `path`, or is written into it, when the block ends without an error.

    Whoever writes may replace the file of that name: it is never a device or pipe itself.
    """
    target = place(path)
    if target is None:
        with tempfile.TemporaryDirectory() as folder:
            name = os.path.join(folder, "whole")
            yield name
            try:
                # Creates no file if the device has disappeared.
                with open(name, "rb") as done, open(os.open(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                    shutil.copyfileobj(done, file)
            except OSError as error:
                raise SystemExit(f"error: {path}: {error.strerror}")
        return
    number, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)[:200]}.", suffix=".tmp", dir=os.path.dirname(target))
    os.close(number)
    try:
        yield temporary
        if os.path.exists(target):
            mode = stat.S_IMODE(os.stat(target).st_mode)
        else:
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_text(path, text):
    """Writes a whole text."""
    with whole(path) as name, open(name, "w") as file:
        file.write(text)
