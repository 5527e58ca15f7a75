_base_ = 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'

# Starts from random weights, so that it builds without a download.
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.RedNet',
        arch=50,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
)
