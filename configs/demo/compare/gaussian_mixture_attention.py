_base_ = 'vit.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='VisionTransformer',
        rules=[dict(layer='MultiheadAttention', to=dict(type='mmext.GaussianMixtureAttention'))],
    )
)
