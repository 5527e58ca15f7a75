# A RetinaNet on a parameter-inverted pyramid: half a ResNet-18 sees half the image, a quarter of one the whole.
_base_ = ['../_base_/retinanet.py', '../_base_/scenes_det.py']

model = dict(
    backbone=dict(
        type='mmext.PIIP',
        arch=dict(
            branches=(
                dict(type='mmpretrain.ResNet', depth=18, stem_channels=32, base_channels=32),
                dict(type='mmpretrain.ResNet', depth=18, stem_channels=16, base_channels=16),
            ),
            sizes=(64, 128),
            interactions=4,
        ),
        num_heads=4,
        norm_cfg=dict(type='GN', num_groups=8),
        out_indices=(1, 2, 3),
    ),
    neck=dict(type='FPN', in_channels=[64, 128, 256], out_channels=64, num_outs=3),
)
