// Nothing is drawn here: this only asks for the curves when the section is seen.
arrive(() => {});
