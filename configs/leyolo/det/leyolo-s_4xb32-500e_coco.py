_base_ = 'leyolo-n_4xb32-500e_coco.py'

model = dict(
    backbone=dict(arch='small'),
    neck=dict(in_channels=[48, 88, 128], hidden_channels=[88, 176, 256]),
    bbox_head=dict(in_channels=[48, 88, 128]),
)
