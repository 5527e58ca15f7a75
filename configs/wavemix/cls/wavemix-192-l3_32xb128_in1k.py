_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

model = dict(
    type='mmext.auto_channels',
    model='mmpretrain.ImageClassifier',
    backbone=dict(_delete_=True, type='mmext.WaveMix', arch='192-L3'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels='auto'),
)
