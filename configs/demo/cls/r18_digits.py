# The stock backbone, half as wide as ResNet-18, learns the digits with the budget of stage 1 and 2 together.
_base_ = 'falconnet_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        stem_channels=32,
        base_channels=32,
        out_indices=(3,),
        strides=(1, 2, 2, 2),
    ),
    head=dict(in_channels=256),
)

# The 16 epochs of stage 1 and the 5 of stage 2.
max_epochs = 21
param_scheduler = [
    dict(type='OneCycleLR', eta_max=4e-3, total_steps=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=7)
