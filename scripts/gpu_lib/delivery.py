"""What comes back from a machine that returns few files of limited size: results, verdicts, and one archive of everything."""

import io
import os
import tarfile
import time

MOST_FILES, MOST_BYTES = 8, 16 << 20
# Packing takes a moment: what comes back is that much behind at most.
SECONDS = 5
# Unpacked, to be read directly; the archive has them too.
PLAIN = ("results.json", "verdict.txt")


class Delivery:
    """Keeps what is made from a folder's files up to date (`refresh` makes it), and copies of them, packed, in `folder`, where one is given."""

    def __init__(self, work, folder, refresh=lambda: None, clock=time.monotonic):
        self.work, self.folder, self.refresh, self.clock = work, folder, refresh, clock
        self.updated_at, self.left_out, self.broken = float("-inf"), [], None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def update(self, now=False):
        """Brings all up to date, every few seconds at most unless it must be `now`."""
        if not now and self.clock() - self.updated_at < SECONDS:
            return
        try:
            self.refresh()
            self.broken = None
        except Exception as error:  # what was measured must come back, whatever cannot be made of it
            self.broken = f"results could not be made: {type(error).__name__}: {error}"
        if self.folder:
            for name in PLAIN:
                if (self.work / name).exists():
                    put(self.folder / name, (self.work / name).read_bytes())
            self.pack()
        self.updated_at = self.clock()

    def contents(self):
        """The files as they are now, the smallest first. Others write them meanwhile, whole or not at all."""
        found = {}
        for path in self.work.iterdir():
            if path.is_file() and path.suffix != ".part":
                try:
                    found[path.name] = path.read_bytes()
                except FileNotFoundError:
                    continue
        return sorted(found.items(), key=lambda file: (len(file[1]), file[0]))

    def pack(self):
        """The archive. Where it would be too large, the largest files stay out, and are named in `left-out.txt`."""
        files, self.left_out = self.contents(), []
        while True:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as archive:
                for name, data in files:
                    entry = tarfile.TarInfo(f"gpu/{name}")
                    entry.size, entry.mtime = len(data), int(time.time())
                    archive.addfile(entry, io.BytesIO(data))
            if packed.tell() <= MOST_BYTES or not files:
                break
            self.left_out.append(files.pop()[0])
        put(self.folder / "gpu.tar.gz", packed.getvalue())
        if self.left_out:
            put(self.folder / "left-out.txt", "\n".join(self.left_out).encode() + b"\n")

    def faults(self):
        """What of the folder would not come back, in words."""
        faults = [self.broken] if self.broken else []
        if not self.folder:
            return faults
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        faults += [f"{path.name}: {path.stat().st_size} bytes, at most {MOST_BYTES} come back" for path in found if path.stat().st_size > MOST_BYTES]
        if len(found) > MOST_FILES:
            faults.append(f"{len(found)} files, at most {MOST_FILES} come back: {', '.join(path.name for path in found)}")
        return faults + [f"{name}: too large for the archive" for name in self.left_out]


def put(path, data):
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
