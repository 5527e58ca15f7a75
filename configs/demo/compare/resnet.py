# The host of the dense layers: mmpretrain's ResNet-18, a quarter as wide.
_base_ = '../_base_/compare_digits.py'

# What the diffs of this config are compared with; they inherit it.
reference = 'resnet.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=24,
        base_channels=24,
        num_stages=3,
        out_indices=(2,),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=96, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
