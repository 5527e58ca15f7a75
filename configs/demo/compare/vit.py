# The host of attention over tokens: a small vision transformer without a class token, patches of 6 x 6.
_base_ = '../_base_/compare_digits.py'

# What the diffs of this config are compared with; they inherit it.
reference = 'vit.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=6, num_heads=4, feedforward_channels=192),
        img_size=48,
        patch_size=6,
        with_cls_token=False,
        out_type='avg_featmap',
        final_norm=False,
    ),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=96, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
