# The first stage of all: half a ResNet-18 learns single digits. It has no boxes and stands in no table.
_base_ = '../cls/r18_digits.py'

max_epochs = 10
param_scheduler = [
    dict(type='OneCycleLR', eta_max=4e-3, total_steps=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)

first_stage = True
