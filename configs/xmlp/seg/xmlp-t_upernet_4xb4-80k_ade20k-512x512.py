_base_ = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'

# Trained on crops of the one size that the network is built for, and tested on windows of it. No weights are loaded.
side = 512
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.XMLP',
        arch='T',
        img_size=side,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
    test_cfg=dict(mode='slide', crop_size=(side, side), stride=(341, 341)),
)
