//! Common English words: each one token behind a space in most vocabularies that are in use.

pub const WORDS: &str = "\
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which \
one you were all her she there would their we him been has when who will no more if out so up said what its about \
than into them can only other time new some could these two may first then do any like my now over such our man me \
even most made after also did many off before must well back through years much where your way down should because \
long each just state those people too little very good make world still see own work men day get here old life \
both between being under three never know same last another while us might great go come since against right take \
small large house place home water hand part head line side name number night light land city young white black";
