"""Tables of points: simple ones as a whole, those of spots piece by piece."""

from itkstream.io.points.tables import (
    PointTable,
    check_points_output,
    read_points,
    write_points,
)

__all__ = ["PointTable", "check_points_output", "read_points", "write_points"]
