_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# Logits start at zero, and images are scaled to [-1, 1].
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    type='mmext.auto_channels',
    model='mmpretrain.ImageClassifier',
    backbone=dict(_delete_=True, type='mmext.MONet', arch='T', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels='auto', init_cfg=dict(_delete_=True, type='Constant', layer='Linear', val=0.0)),
)
