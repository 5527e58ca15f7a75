_base_ = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'

# The authors publish Semantic FPN. Their optimizer is kept. Starts from random weights, so that it builds without a download.
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.LSNet',
        arch='T',
        bias_side=14,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 384]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'mixer.biases': dict(decay_mult=0.0)}),
)
