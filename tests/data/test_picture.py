"""modulate.data.picture, on real files."""

import numpy as np
import pytest
from PIL import Image

from modulate.data import picture
from modulate.data.picture import is_picture, picture_size, read_picture
from modulate.errors import MissingFileError, VideoError
from tests.video_files import write_video

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_the_pixels_back(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert is_picture(path)
    assert np.array_equal(read_picture(path), PIXELS)
    assert picture_size(path) == (4, 6)


def test_a_picture_is_turned_upright_as_its_file_says(tmp_path):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right edge of the scene
    Image.fromarray(PIXELS).save(path, exif=exif)
    assert np.array_equal(read_picture(path), np.rot90(PIXELS, -1))
    assert picture_size(path) == (6, 4)


def test_gray_and_transparent_pictures_become_rgb_on_white(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "gray.png")
    assert np.array_equal(read_picture(tmp_path / "gray.png"), PIXELS[..., :1].repeat(3, 2))
    clear = np.dstack([PIXELS, np.zeros((4, 6), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png") == 255).all()


def test_the_content_decides_what_a_file_is(tmp_path):
    video = write_video(tmp_path / "clip.mp4", seconds=0.3).rename(tmp_path / "clip.png")
    assert not is_picture(video)
    with pytest.raises(VideoError, match="no picture in a format that is read"):
        read_picture(video)


def test_damaged_moving_empty_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(VideoError, match="cannot be decoded as a picture"):
        read_picture(path)
    moving = tmp_path / "moving.gif"
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    with pytest.raises(VideoError, match="is a moving GIF"):
        read_picture(moving)
    (tmp_path / "empty.png").touch()
    with pytest.raises(VideoError, match="is empty"):
        is_picture(tmp_path / "empty.png")
    with pytest.raises(MissingFileError, match="no file at"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(MissingFileError, match="no file at"):
        picture_size(tmp_path / "none.png")


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setattr(picture, "MAX_PIXELS", 23)
    with pytest.raises(VideoError, match="6 × 4 pixels; pictures may have at most 23"):
        read_picture(path)
