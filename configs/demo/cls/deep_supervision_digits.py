# A small ResNet whose inner stages predict, too; their weights fade.
_base_ = '../_base_/compare_digits.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=16, base_channels=16, out_indices=(1, 2, 3)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='mmext.DeepSupervisionClsHead',
        head='LinearClsHead',
        num_classes=10,
        in_channels=128,
        companions=[dict(in_index=0, in_channels=32), dict(in_index=1, in_channels=64)],
    ),
)
custom_hooks = [dict(type='mmext.CompanionWeightHook')]
