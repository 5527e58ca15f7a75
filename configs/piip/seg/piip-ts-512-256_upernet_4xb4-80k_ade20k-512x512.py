_base_ = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'

# DeiT-S sees the image at half its size, DeiT-T the whole. The authors publish larger networks; their optimizer is kept.
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmext.PIIP',
        arch=dict(
            branches=(
                dict(depth=12, embed_dims=384, num_heads=6, drop_path_rate=0.05),
                dict(depth=12, embed_dims=192, num_heads=3, drop_path_rate=0.05),
            ),
            sizes=(256, 512),
        ),
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.95, norm_decay_mult=0.0, bias_decay_mult=0.0),
)
