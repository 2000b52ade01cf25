"""The test suite mirrors the code: ``modulate/data/video.py`` is tested by
``tests/data/test_video.py``.
"""
