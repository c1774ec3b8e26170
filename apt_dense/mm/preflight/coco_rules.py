"""What is looked for in COCO files and their pictures, as data."""
from apt_dense.mm.preflight.findings import MENDED, STOP, WARN, Rule

EXPORT = 'Export the file again, or correct it'

# ---- the file: nothing can be read from it ----
FILE_MISSING = Rule('coco-file-missing', STOP, 'an annotation file that is not there, or is a folder', 'Put it '
                    'there, or name yours')
UNREADABLE = Rule('coco-unreadable', STOP, 'a file that is not whole JSON text: a Git LFS pointer, a cut download, a '
                  'web page, an archive, another encoding', 'Fetch the file again')
NOT_AN_OBJECT = Rule('coco-not-an-object', STOP, 'a list or a value instead of an object with images, annotations and '
                     'categories', 'Convert it to COCO\'s format: {"images": [...], "annotations": [...], '
                     '"categories": [...]}')
MISSING_SECTION = Rule('coco-missing-section', STOP, 'no images or categories, or something else than a list of '
                       'objects', EXPORT)
EMPTY_SECTION = Rule('coco-empty-section', STOP, 'an empty list of images or categories', EXPORT)
BAD_IMAGE = Rule('coco-bad-image', STOP, 'images without id, file name, or a width and height of at least 1 px', EXPORT)
DUPLICATE_IMAGES = Rule('coco-duplicate-image-ids', STOP, 'image ids that occur twice, for different images', 'Give '
                        'each image an id of its own, and its annotations too: two files were joined without it')
BAD_CATEGORY = Rule('coco-bad-category', STOP, 'categories without id or name', EXPORT)
DUPLICATE_CATEGORIES = Rule('coco-duplicate-categories', STOP, 'category ids that occur twice, or names of '
                            'metainfo.classes of which more than one id has annotations', 'Give each class one id and '
                            'one name')
CLASSES_TEXT = Rule('coco-classes-text', STOP, 'metainfo.classes that is one text instead of a sequence of names',
                    "Write classes=('name',), with the comma")
MISSING_CLASS = Rule('coco-missing-class', STOP, 'names of metainfo.classes that the file does not define',
                     "metainfo.classes must be names of the file's categories; a class without annotations needs its "
                     'entry in categories, too')
CLASS_SPELLING = Rule('coco-class-spelling', STOP, 'names of metainfo.classes that differ from the file\'s in case or '
                      'spaces only', 'Write both alike')
DUPLICATE_CLASSES = Rule('coco-duplicate-classes', STOP, 'names that metainfo.classes has twice', 'Name each class '
                         'once')
FILE_RULES = (FILE_MISSING, UNREADABLE, NOT_AN_OBJECT, MISSING_SECTION, EMPTY_SECTION, BAD_IMAGE, DUPLICATE_IMAGES,
              BAD_CATEGORY, DUPLICATE_CATEGORIES, CLASSES_TEXT, MISSING_CLASS, CLASS_SPELLING, DUPLICATE_CLASSES)

# ---- mended: the right value is beyond doubt ----
BYTE_ORDER_MARK = Rule('coco-byte-order-mark', MENDED, 'a byte order mark before the JSON', 'It is passed over')
SIZE_AS_TEXT = Rule('coco-size-type', MENDED, 'image sizes as text', 'They are read as numbers')
REPEATED_IMAGES = Rule('coco-repeated-images', MENDED, 'images that are listed twice, word for word', 'They count once')
SPARE_CATEGORIES = Rule('coco-spare-categories', MENDED, 'categories of one name of which only one has annotations, or '
                        'that are listed twice', 'The others are left out')
ID_TYPES = Rule('coco-id-types', MENDED, 'ids of images and categories that are text at one place and a number at the '
                'other', 'They are matched')
ANNOTATION_IDS = Rule('coco-annotation-ids', MENDED, 'annotation ids that are missing or occur twice', 'They are '
                      'numbered anew')
UNSCORED_IDS = Rule('coco-unscored-ids', MENDED, 'annotation ids that are 0 or no whole number', 'They are numbered '
                    'anew; pycocotools takes id 0 for "not found"')
REPEATED_ANNOTATIONS = Rule('coco-repeated-annotations', MENDED, 'annotations that are listed twice, word for word',
                            'They count once')
ISCROWD = Rule('coco-iscrowd', MENDED, 'annotations without iscrowd', 'It is 0')
ISCROWD_TEXT = Rule('coco-iscrowd-text', MENDED, 'annotations whose iscrowd is text', 'It is read as a number; taken '
                    'for a truth, "0" is true')
AREA = Rule('coco-area', MENDED, 'annotations without area', "It is the mask's, without a mask the box's")
FLAT_POLYGON = Rule('coco-flat-polygon', MENDED, 'a polygon that is not inside a list of polygons', 'It is put into '
                    'one')
THIN_POLYGONS = Rule('coco-thin-polygons', MENDED, 'polygons of less than three points beside proper ones', 'They have '
                     'no area and are left out of the mask')
THIN_FIRST = Rule('coco-thin-first-polygon', MENDED, 'masks that begin with a polygon of less than three points',
                  'It is left out; pycocotools takes all of them for boxes')
CATEGORY_ORDER = Rule('coco-category-order', MENDED, 'categories in another order than metainfo.classes', 'Label i is '
                      'class i')
BACKSLASHES = Rule('coco-backslashes', MENDED, 'file names with backslashes, of pictures that are there with slashes',
                   'They are read as slashes')
MENDED_RULES = (BYTE_ORDER_MARK, SIZE_AS_TEXT, REPEATED_IMAGES, SPARE_CATEGORIES, ID_TYPES, ANNOTATION_IDS,
                UNSCORED_IDS, REPEATED_ANNOTATIONS, ISCROWD, ISCROWD_TEXT, AREA, FLAT_POLYGON, THIN_POLYGONS,
                THIN_FIRST, CATEGORY_ORDER, BACKSLASHES)

# ---- bad annotations: on_bad_annotation says whether they stop or are left out ----
POLICY = "Correct it, or set on_bad_annotation='skip'"
INCOMPLETE = Rule('coco-incomplete', STOP, 'incomplete', POLICY)
UNKNOWN_IMAGE = Rule('coco-unknown-image', STOP, 'of images that the file does not list', POLICY)
UNKNOWN_CATEGORY = Rule('coco-unknown-category', STOP, 'of categories that the file does not define', POLICY)
BOX_NOT_FINITE = Rule('coco-box-not-finite', STOP, 'with a box that is not four finite numbers', POLICY)
NO_AREA = Rule('coco-no-area', STOP, 'without area (a side below 1 px)', POLICY)
OUTSIDE = Rule('coco-outside', STOP, 'outside the image', POLICY)
NO_MASK = Rule('coco-no-mask', STOP, 'without a mask, where masks are wanted', POLICY)
BAD_MASK = Rule('coco-bad-mask', STOP, 'with a mask that cannot be read', POLICY)
MASK_SIZE = Rule('coco-mask-size', STOP, "with a mask of another size than the image's", POLICY)
ANNOTATION_RULES = (INCOMPLETE, UNKNOWN_IMAGE, UNKNOWN_CATEGORY, BOX_NOT_FINITE, NO_AREA, OUTSIDE, NO_MASK, BAD_MASK,
                    MASK_SIZE)
# Those that nothing can be done with.  mmdetection and pycocotools end in a traceback or in NaN; the others mmdetection
# leaves out of training without a word, and pycocotools counts them when it scores.
UNUSABLE = frozenset({INCOMPLETE, BOX_NOT_FINITE, NO_MASK, BAD_MASK, MASK_SIZE})
SCORED = frozenset({NO_AREA, OUTSIDE})  # too small to learn from, and no mistake in an evaluation
OTHER_CLASS = Rule('coco-other-class', WARN, 'of other classes', 'Left out on purpose')  # reported by the log alone

# ---- what is left of a dataset ----
NO_IMAGE_LEFT = Rule('coco-no-image-left', STOP, 'a dataset without an image or an object after filtering', 'Look at '
                     'the numbers: correct the file, metainfo.classes or filter_cfg')
ONLY_CROWDS = Rule('coco-only-crowds', STOP, 'a training set in which everything is a crowd (iscrowd: 1)', 'Crowds are '
                   'ignored in training: set iscrowd to 0 for single objects')
CLASS_LOST = Rule('coco-class-lost', STOP, 'classes whose annotations are all bad', 'Correct them: a class without a '
                  'single good object is learned as background')
NOTHING_TO_SCORE = Rule('coco-nothing-to-score', STOP, 'an evaluation without an object', 'Name the file with the '
                        'annotations, or set format_only=True and outfile_prefix to write predictions only')
NEARLY_EMPTY = Rule('coco-nearly-empty', WARN, 'less than a tenth of the images, or of the annotations, is left',
                    'Look at the numbers')
CLASS_WITHOUT_OBJECTS = Rule('coco-class-without-objects', WARN, 'classes without a single object', 'They cannot be '
                             'learned, and are not part of the score')
FRACTIONS = Rule('coco-boxes-as-fractions', WARN, 'boxes that seem to be fractions of the image', 'COCO\'s boxes are '
                 '[x, y, width, height] in pixels: multiply by the image\'s size')
CORNERS = Rule('coco-boxes-as-corners', WARN, 'boxes that seem to be two corners', 'COCO\'s boxes are [x, y, width, '
               'height]: subtract')
BOX_BESIDE_MASK = Rule('coco-box-beside-mask', WARN, 'boxes that do not touch their own polygons', 'Boxes and masks '
                       'are of different sizes or images: correct one of them')
ONE_FILE_TWO_IDS = Rule('coco-one-file-two-ids', WARN, 'file names of more than one image', 'Each copy shows the '
                        'objects of the other as background: join their annotations under one id')
UNMENDED = Rule('coco-unmended', STOP, 'what CocoDataset or CocoMetric make wrong labels, wrong scores or a traceback '
                'of, and the checked classes mend', "Set type='CheckedCocoDataset' and type='CheckedCocoMetric'")
SET_RULES = (NO_IMAGE_LEFT, ONLY_CROWDS, CLASS_LOST, NOTHING_TO_SCORE, NEARLY_EMPTY, CLASS_WITHOUT_OBJECTS, FRACTIONS,
             CORNERS, BOX_BESIDE_MASK, ONE_FILE_TWO_IDS, UNMENDED)
# What mmdetection's own classes do wrong with what is mended here.
_BOTH = {BYTE_ORDER_MARK, SPARE_CATEGORIES, ISCROWD_TEXT, ID_TYPES, ANNOTATION_IDS, REPEATED_ANNOTATIONS, AREA,
         FLAT_POLYGON, CATEGORY_ORDER}
BREAKS_DATASET = frozenset(_BOTH | {SIZE_AS_TEXT, BACKSLASHES})
BREAKS_METRIC = frozenset(_BOTH | {ISCROWD, UNSCORED_IDS, THIN_FIRST})

# ---- pictures ----
PICTURE_MISSING = Rule('picture-missing', STOP, 'pictures that are not there', 'Put them there, or correct file names '
                       'or data_prefix')
PICTURE_UNREADABLE = Rule('picture-unreadable', STOP, 'pictures that cannot be read', 'Repair or remove them')
PICTURE_SIZE = Rule('picture-size', STOP, "pictures of another size than the file's width and height", 'The boxes are '
                    'of another picture: correct the file or the pictures')
PICTURE_TURNED = Rule('picture-turned', STOP, 'pictures that EXIF data turn, while width and height are those of the '
                      'pixels as stored', "The boxes would lie beside the objects. Turn the pixels (mogrify "
                      "-auto-orient) and the boxes, or load as stored: LoadImageFromFile(color_type="
                      "'color_ignore_orientation')")
PICTURE_MAYBE_TURNED = Rule('picture-maybe-turned', WARN, 'pictures that EXIF data turn or mirror, where the size does '
                            'not tell for which way up the boxes are', 'Look at the drawn pictures of '
                            'tools/check_data.py')
PICTURE_RULES = (PICTURE_MISSING, PICTURE_UNREADABLE, PICTURE_SIZE, PICTURE_TURNED, PICTURE_MAYBE_TURNED)
