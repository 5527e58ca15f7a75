# Stage 2: the same network with every k x k kernel of stage 1 as a frozen basis, refocused.
_base_ = 'falconnet_digits.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.RefConv2d')))
load_from = 'work_dirs/demo/digits/epoch_16.pth'

max_epochs = 5
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-3, total_steps=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)
