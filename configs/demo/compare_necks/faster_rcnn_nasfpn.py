# NAS-FPN's topology is made for five levels: it gets a finer and a coarser one than the others.
_base_ = 'faster_rcnn_fpn.py'

model = dict(
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(
        _delete_=True,
        type='NASFPN',
        in_channels=[32, 64, 128, 256],
        out_channels=64,
        num_outs=5,
        stack_times=2,
        norm_cfg=dict(type='BN'),
    ),
    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[4, 8, 16, 32], finest_scale=14)),
)
