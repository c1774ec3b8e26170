"""What the boxes of a COCO file look like as a whole: fractions of the image, or two corners."""
from collections.abc import Iterator
from math import atanh, sqrt

from apt_dense.mm.preflight import coco_rules as rules
from apt_dense.mm.preflight.findings import Finding

SIGMAS = 3  # so far above 0 must a correlation be, by Fisher's transformation
MIN_CORRELATION = 0.5


class Correlation:
    """Pearson's correlation of two numbers, streaming."""

    def __init__(self):
        self.count = 0
        self.sums = [0.0] * 5  # of a, b, a^2, b^2, ab

    def add(self, first: float, second: float) -> None:
        """Count one pair."""
        self.count += 1
        sums = self.sums
        sums[0] += first
        sums[1] += second
        sums[2] += first * first
        sums[3] += second * second
        sums[4] += first * second

    def value(self) -> float:
        """The correlation; 0 if one of the two never changes."""
        if self.count < 2:
            return 0.0
        first, second, first_square, second_square, product = (item / self.count for item in self.sums)
        spread = (first_square - first ** 2) * (second_square - second ** 2)
        return (product - first * second) / sqrt(spread) if spread > 1e-12 else 0.0

    def is_sure(self) -> bool:
        """Whether the correlation is high, and hardly so by chance."""
        value = min(self.value(), 1 - 1e-9)
        return self.count > 3 and value >= MIN_CORRELATION and atanh(value) * sqrt(self.count - 3) > SIGMAS


class BoxSurvey:
    """Counts over the boxes of a file.

    Two corners of a small object are nearly alike, wherever it is: the third number rises with the first, the fourth
    with the second, and each is larger.  A true width says nothing of the place, or falls with it, as the box ends at
    the border of the image.
    """

    def __init__(self):
        self.total = self.ordered = self.inside = self.leaving = self.fractions = 0
        self.columns, self.rows = Correlation(), Correlation()

    def add(self, box: list[float], image: dict) -> None:
        """Count one box of an image with its width and height."""
        x, y, width, height = box
        image_width, image_height = image['width'], image['height']
        self.total += 1
        self.ordered += width > x and height > y
        self.inside += 0 <= x < width <= image_width and 0 <= y < height <= image_height
        self.leaving += x + width > image_width + 1 or y + height > image_height + 1
        self.fractions += (min(x, y) >= 0 and min(width, height) > 0 and max(box) <= 1 and
                           min(image_width, image_height) > 2)
        if self.ordered == self.total:  # else they are no corners
            self.columns.add(x / image_width, width / image_width)
            self.rows.add(y / image_height, height / image_height)

    def suspicions(self, name: str) -> Iterator[Finding]:
        """What is suspicious, in a file of this name."""
        total, all_inside = self.total, self.ordered == self.inside == self.total
        if total and self.fractions >= 0.9 * total:
            yield Finding(rules.FRACTIONS, name, f'{self.fractions} of {total} boxes have all four numbers between 0 '
                          'and 1')
        elif total and self.leaving and (self.leaving >= 0.5 * total or all_inside and self.leaving >= 0.1 * total):
            yield Finding(rules.CORNERS, name, f'{self.leaving} of {total} boxes leave their image; of {self.ordered} '
                          'the third number is larger than the first and the fourth than the second; read as two '
                          f'corners, {self.inside} lie inside')
        elif total and all_inside and self.columns.is_sure() and self.rows.is_sure():
            yield Finding(rules.CORNERS, name, f'of all {total} boxes the third number is larger than the first and '
                          'the fourth than the second, and they rise together (correlation '
                          f'{self.columns.value():.2f} and {self.rows.value():.2f}); read as two corners, all lie '
                          'inside')
