_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# The authors' recipe. Other forms are one word: R50-max, and ViT or PiT, whose outputs take a norm.
model = dict(
    type='mmext.auto_channels',
    model='mmpretrain.ImageClassifier',
    backbone=dict(_delete_=True, type='mmext.PfNet', arch='R50-hybrid', out_indices=(-1,)),
    head=dict(in_channels='auto'),
)
optim_wrapper = dict(optimizer=dict(lr=0.2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=3, convert_to_iter_based=True),
    dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60], gamma=0.1),
]
train_cfg = dict(max_epochs=90)
auto_scale_lr = dict(base_batch_size=1024)
