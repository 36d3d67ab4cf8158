"""Draw what was merged in a clip (VTM paper, figures 3, 5 and 7): a sheet, an overlay video, and a page."""

from vtm.pictures.view import BlockView, ClipView

__all__ = ["BlockView", "ClipView"]
