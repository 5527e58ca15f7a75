_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'

# The authors' recipe. Starts from random weights, so that it builds without a download.
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.OverLoCK',
        arch='T',
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[64, 128, 384, 640]),
    auxiliary_head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, weight_decay=0.01), paramwise_cfg=dict(norm_decay_mult=0.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
