_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

model = dict(
    type='mmext.auto_channels',
    model='mmseg.EncoderDecoder',
    backbone=dict(_delete_=True, type='mmext.MONet', arch='T'),
    decode_head=dict(in_channels='auto'),
    auxiliary_head=dict(in_channels='auto'),
)
optim_wrapper = dict(
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, norm_decay_mult=0.0),
)
