_base_ = './bn-pe_64x4_2000_blocks-64.py'
scene = dict(scene='terrain')
train_dataloader = dict(dataset=scene)
val_dataloader = dict(dataset=scene)
test_dataloader = dict(dataset=scene)
