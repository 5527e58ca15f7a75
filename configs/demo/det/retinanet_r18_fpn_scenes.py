# The same detector from stock parts: half a ResNet-18, FPN, stacked convolutions in the head.
_base_ = ['../_base_/retinanet.py', '../_base_/scenes_det.py']

model = dict(
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=18,
        stem_channels=32,
        base_channels=32,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/demo/stock_digits/epoch_21.pth', prefix='backbone.'),
    ),
    neck=dict(type='FPN', in_channels=[64, 128, 256], out_channels=64, num_outs=3),
)
