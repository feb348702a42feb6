"""Films: pictures that follow one another in one GIF or MP4 file."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from flowcli.errors import JobError, UserError
from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array
from flowcli.storage import replacing

ENDINGS = (".gif", ".mp4")
MOST_FPS = 50
"""A GIF counts in hundredths of a second, and browsers slow down what changes faster."""
COLOURS = 64
"""Of a GIF's one palette: the pictures have few hues, and fewer colours are fewer bytes."""
ENCODER = "libx264"


def require(ending: str) -> None:
    """Refuse a film that could not be written here.

    Raises:
        UserError: an MP4, and there is no ffmpeg with H.264.
    """
    if ending == ".mp4":
        ffmpeg()


def ffmpeg() -> str:
    """The ffmpeg of the package imageio-ffmpeg, else the system's.

    Raises:
        UserError: neither is there, or it cannot write H.264.
    """
    try:
        import imageio_ffmpeg

        found: str | None = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # not installed, or without a binary for this machine
        found = shutil.which("ffmpeg")
    advice = 'pip install "flowcli[video]" brings one; a .gif needs none'
    if found is None:
        raise UserError(f"an .mp4 needs ffmpeg, and there is none: {advice}")
    try:
        known = subprocess.run([found, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise UserError(f"an .mp4 needs ffmpeg, and {found} does not start ({error.strerror}): {advice}") from error
    if f" {ENCODER} " not in known:
        raise UserError(f"an .mp4 needs an ffmpeg with H.264 ({ENCODER}), and {found} has none: {advice}")
    return found


def write_film(file: Path, picture: Callable[[int], Array], shown: Sequence[int], fps: float) -> None:
    """Write pictures one after the other; the file's ending says which kind of film.

    Args:
        file: .gif or .mp4.
        picture: number -> (H, W, 3) of bytes, H and W even.
        shown: how long each picture stays, in frames.
        fps: frames a second.

    Raises:
        UserError: see `require`.
        JobError: ffmpeg failed.
    """
    write = _write_mp4 if file.suffix == ".mp4" else _write_gif
    write(file, picture, shown, fps)


def _write_gif(file: Path, picture: Callable[[int], Array], shown: Sequence[int], fps: float) -> None:
    """One palette for all pictures, and no dithering: what stands still stays the same and takes no bytes."""
    ends = np.round(100 * np.cumsum(shown) / fps).astype(int)
    milliseconds = (10 * np.diff(ends, prepend=0)).tolist()
    last = len(shown) - 1
    palette = _palette(np.concatenate([picture(number) for number in (0, last // 2, last)]))
    pictures = (
        Image.fromarray(picture(number)).quantize(palette=palette, dither=Image.Dither.NONE)
        for number in range(len(shown))
    )
    first = next(pictures)
    with replacing(file) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=pictures, duration=milliseconds, loop=0)


def _palette(some: Array) -> Image.Image:
    """Colours that stand for those of (H, W, 3) bytes; the ones that have a meaning, as they are."""
    kept = np.array([to_rgb(colour) for colour in ("black", "white", TRUE_COLOUR, MODEL_COLOUR)]) * 255
    median = Image.fromarray(some).quantize(
        COLOURS - len(kept), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    found = np.array(median.getpalette(), dtype=float).reshape(-1, 3)
    # nearly white would take the place of white, as Pillow looks for a neighbour in steps of four
    far = np.abs(found[:, None] - kept).max(2).min(1) > 8
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([kept, found[far]]).round().astype(int).flatten().tolist())
    return palette


def _write_mp4(file: Path, picture: Callable[[int], Array], shown: Sequence[int], fps: float) -> None:
    """H.264 in yuv420p with its index in front: what every browser and slide programme plays."""
    first = picture(0)
    height, width = first.shape[:2]
    with replacing(file) as temporary, tempfile.TemporaryFile() as told:
        command = [ffmpeg(), "-hide_banner", "-loglevel", "error", "-y"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
        command += ["-c:v", ENCODER, "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
        command += [f"file:{temporary}"]
        # in a session of its own: Ctrl-C in a terminal is for this process to hear
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=told, start_new_session=True)
        assert process.stdin is not None
        try:
            _feed(process.stdin, picture, shown)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
        if process.returncode != 0:
            told.seek(0)
            lines = told.read().decode("utf-8", "replace").strip().splitlines() or [f"status {process.returncode}"]
            raise JobError(f"ffmpeg could not write {file}: {lines[-1]}")


def _feed(pipe: IO[bytes], picture: Callable[[int], Array], shown: Sequence[int]) -> None:
    """Hand over every frame; a process that hangs up says why itself."""
    try:
        with pipe:
            for number, count in enumerate(shown):
                content = picture(number).tobytes()
                for _ in range(count):
                    pipe.write(content)
    except BrokenPipeError:
        return
