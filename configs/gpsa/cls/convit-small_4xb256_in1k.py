# The widths of ConViT-S. The stock network has no class token that joins after block 10: the mean of all tokens stands for it.
_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='VisionTransformer',
        _delete_=True,
        arch=dict(embed_dims=432, num_layers=12, num_heads=9, feedforward_channels=1728),
        img_size=224,
        patch_size=16,
        qkv_bias=False,
        with_cls_token=False,
        out_type='avg_featmap',
        final_norm=False,
        rules=[dict(layer='MultiheadAttention', first=10, to=dict(type='mmext.GPSA'))],
    ),
    head=dict(in_channels=432),
)
