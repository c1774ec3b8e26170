# A plain ViT as a classifier; what is on top of it adds sizes and normalisation.
model = dict(
    type='APTClassifier',
    num_classes=1000,
    data_preprocessor=dict(type='ClassDataPreprocessor', bgr_to_rgb=True, num_classes=1000),
    backbone=dict(type='APTViT', num_scales=1, thresholds=()),
    pooling='class_token')
