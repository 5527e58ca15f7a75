# No class token, as in the paper: the mean of all tokens is classified.
_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='VisionTransformer',
        with_cls_token=False,
        out_type='avg_featmap',
        final_norm=False,
        rules=[dict(layer='MultiheadAttention', to=dict(type='mmext.GaussianMixtureAttention'))],
    )
)
